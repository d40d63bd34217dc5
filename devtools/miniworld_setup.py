"""Puts the mini world's models and photos into a ComfyUI base directory, once for every state of the mini world.

Runs in `.venv`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from .comfyui_server import prepare_base
from .console import Failure, run_quietly, step
from .lock import Lock
from .places import LOGS, REPOSITORY, venv_python

CHECKPOINT = Path("models/checkpoints/miniworld.safetensors")
DOMAIN = Path("models/e4t_domains/mini_faces.safetensors")
CATS_DOMAIN = Path("models/e4t_domains/mini_cats.safetensors")
PHOTO = Path("input/mini_photo.png")
SECOND_PHOTO = Path("input/mini_photo_2.png")
CAT_PHOTO = Path("input/mini_cat_photo.png")
SAME_PERSON = (Path("input/mini_same_person_2.png"), Path("input/mini_same_person_3.png"))
DRAWING = Path("input/mini_drawing.png")
MADE = (CHECKPOINT, DOMAIN, CATS_DOMAIN, PHOTO, SECOND_PHOTO, CAT_PHOTO, *SAME_PERSON, DRAWING)
ROOMS = ("miniworld", "e4t_core", "commands")
"""What makes the files: weights, forms of the networks, and the configs that a domain file holds."""
STAMP = ".e4t-miniworld.sha256"


def set_up(base: Path) -> None:
    """Makes `base` ready: folders, the link to this pack, and the mini world's files.

    Raises: Failure if the mini world cannot be set up or does not make what it should.
    """
    with Lock(base.with_name(base.name + ".lock"), f"another dev.py that sets up {base}") as lock:
        prepare_base(base)
        stamp, wanted = base / STAMP, state_of_the_mini_world()
        if all((base / file).is_file() for file in MADE) and stamp.is_file() and stamp.read_text().strip() == wanted:
            return
        stamp.unlink(missing_ok=True)
        with step("setting up the mini world's models"):
            command = [str(venv_python()), "-m", "miniworld.setup", "--base-directory", str(base)]
            run_quietly(
                command,
                LOGS / "miniworld.log",
                "The mini world could not be set up",
                cwd=REPOSITORY,
                inherited=lock.inherited,
            )
        missing = [str(base / file) for file in MADE if not (base / file).is_file()]
        if missing:
            raise Failure(
                f"The mini world's set-up ended without making {', '.join(missing)} (see .dev/logs/miniworld.log)."
            )
        stamp.write_text(wanted + "\n")


def state_of_the_mini_world() -> str:
    """A digest of the contents of what makes the files: the same in every checkout of the same state."""
    digest = hashlib.sha256()
    for file in sorted(file for room in ROOMS for file in (REPOSITORY / room).rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(REPOSITORY).as_posix()} {file.stat().st_size}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
