"""Puts the mini world's models and photo into a ComfyUI base directory, once for every state of the mini world."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from .comfyui_server import prepare_base
from .console import Failure, run_quietly, step
from .places import LOGS, REPOSITORY, venv_python

CHECKPOINT = Path("models/checkpoints/miniworld.safetensors")
DOMAIN = Path("models/e4t_domains/mini_faces.safetensors")
PHOTO = Path("input/mini_photo.png")
STAMP = ".e4t-miniworld.sha256"


def set_up(base: Path) -> None:
    """Makes `base` ready: folders, the link to this pack, and the mini world's three files.

    Raises: Failure if the mini world cannot be set up or does not make what it should.
    """
    prepare_base(base)
    stamp, wanted = base / STAMP, state_of_the_mini_world()
    made = [base / name for name in (CHECKPOINT, DOMAIN, PHOTO)]
    if all(file.is_file() for file in made) and stamp.is_file() and stamp.read_text().strip() == wanted:
        return
    if not (REPOSITORY / "miniworld" / "setup.py").is_file():
        raise Failure(
            f"{REPOSITORY} holds no mini world (miniworld/setup.py); run dev.py from a clone of the repository."
        )
    stamp.unlink(missing_ok=True)
    with step("setting up the mini world's models"):
        command = [str(venv_python()), "-m", "miniworld.setup", "--base-directory", str(base)]
        run_quietly(command, LOGS / "miniworld.log", "The mini world could not be set up", cwd=REPOSITORY)
    missing = [str(file) for file in made if not file.is_file()]
    if missing:
        raise Failure(
            f"The mini world's set-up ended without making {', '.join(missing)} (see .dev/logs/miniworld.log)."
        )
    stamp.write_text(wanted + "\n")


def state_of_the_mini_world() -> str:
    """A digest of the names, sizes and times of what makes the files: quick, and changes when any of it does.

    The core counts: the domain file holds its preset.
    """
    digest = hashlib.sha256()
    for file in sorted(file for room in ("miniworld", "e4t_core") for file in (REPOSITORY / room).rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            status = file.stat()
            digest.update(f"{file.relative_to(REPOSITORY)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def has_module(name: str) -> bool:
    """True if `python -m name` has something to run in this repository."""
    return importlib.util.find_spec(name) is not None
