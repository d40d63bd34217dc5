"""The virtual environment `.venv`: made once, filled once, filled again only when a requirement changes.

A set-up that was cut off while it wrote into `.venv` leaves a note in the lock file, and the next one makes `.venv` anew:
pip takes a package for installed whose files were copied in part.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from .console import Failure, run_quietly, step
from .lock import Lock
from .places import LOGS, REPOSITORY, VENV, venv_python

NEEDED_GIB = 9.3
"""Disk space that an installation on Linux takes while pip still holds what it downloaded: 8.9 measured before comfy-cli,
which takes 0.3 with what it needs; 7 remain."""
REQUIREMENTS = REPOSITORY / "requirements-dev.txt"
STAMP = VENV / ".e4t-requirements.sha256"
PIP_WRITES = "Installing collected packages"
"""What pip says before it writes its first file; what it says before that leaves the environment as it was."""


def hold() -> Lock:
    """The lock of `.venv`; beside the folder that holds it, which other checkouts may share by a link."""
    real = VENV.resolve()
    return Lock(real.with_name(real.name + ".lock"), "another dev.py that sets up the same .venv")


def check_python() -> None:
    """Raises: Failure if this Python cannot make virtual environments."""
    if importlib.util.find_spec("ensurepip") is None:
        raise Failure(
            f"This Python ({sys.executable}) has no ensurepip module, so it cannot make a virtual environment; "
            "on Debian and Ubuntu install the system package python3-venv, then run the same command again."
        )


def make(lock: Lock) -> None:
    """Makes `.venv` if it is not there or half-made; `lock` is held.

    Raises: Failure without Python's venv module, or with too little disk space.
    """
    has_pip = any(VENV.glob("lib/python3.*/site-packages/pip")) or (VENV / "Lib/site-packages/pip").is_dir()
    if venv_python().is_file() and (VENV / "pyvenv.cfg").is_file() and has_pip and not lock.unfinished:
        return
    check_python()
    again = lock.unfinished
    lock.begin()
    empty(VENV)
    free = shutil.disk_usage(VENV).free / 2**30
    if free < NEEDED_GIB:
        raise Failure(f"{VENV} has {free:.1f} GiB free and the set-up needs {NEEDED_GIB}; free some space first.")
    with step("making the virtual environment .venv" + (" anew, because the last set-up was cut off" if again else "")):
        run_quietly(
            # venv takes no link for a folder.
            [sys.executable, "-m", "venv", str(VENV.resolve())],
            LOGS / "venv.log",
            f"Python could not make the virtual environment {VENV}",
            inherited=lock.inherited,
        )
    lock.finish()


def empty(folder: Path) -> None:
    """Leaves `folder`, or the folder that it links to, there and empty."""
    try:
        folder.resolve().mkdir(parents=True, exist_ok=True)
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    except OSError as error:
        raise Failure(f"{folder} could not be emptied ({error}); end what uses it, then run this again.") from error


def pip(*arguments: str, log: str, failed: str, inherited: tuple[int, ...] = ()) -> None:
    """Runs pip inside `.venv`; see `run_quietly`."""
    command = [str(venv_python()), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    run_quietly(command, LOGS / log, failed, inherited=inherited)


def install(lock: Lock, comfyui: Path) -> None:
    """Installs requirements-dev.txt and the requirements of `comfyui`, unless exactly these were installed before;
    `lock` is held.

    Raises: Failure if pip does not succeed. What was installed before stays usable if pip had written nothing.
    """
    files = [REQUIREMENTS, comfyui / "requirements.txt"]
    wanted = fingerprint(files)
    if STAMP.is_file() and STAMP.read_text().strip() == wanted:
        return
    size = "about 7 GB, " if sys.platform == "linux" and not STAMP.is_file() else ""
    lock.begin()
    with step(f"installing torch, ComfyUI's requirements and the tools ({size}output in .dev/logs/install.log)"):
        try:
            pip(
                *("install", "--progress-bar", "off"),
                *(argument for file in files for argument in ("-r", str(file))),
                log="install.log",
                failed="The requirements could not be installed",
                inherited=lock.inherited,
            )
        except Failure:
            if PIP_WRITES not in (LOGS / "install.log").read_text(encoding="utf-8", errors="replace"):
                lock.finish()
            raise
        part = STAMP.with_name(STAMP.name + ".part")
        part.write_text(wanted + "\n")
        os.replace(part, STAMP)
    lock.finish()


def fingerprint(files: list[Path]) -> str:
    """SHA-256 over the contents of the requirements files and the Python that `.venv` was made with."""
    digest = hashlib.sha256()
    for file in [VENV / "pyvenv.cfg", *files]:
        digest.update(file.read_bytes())
    return digest.hexdigest()
