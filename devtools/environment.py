"""The virtual environment `.venv`: made once, filled once, filled again only when a requirement changes."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
import venv
from pathlib import Path

from .console import Failure, run_quietly, step
from .places import LOGS, REPOSITORY, VENV, venv_python

OLDEST_PYTHON = (3, 11)
NEEDED_GIB = 9
"""Disk space that an installation on Linux takes while pip still holds what it downloaded (measured: 8.9); 7 remain."""
REQUIREMENTS = REPOSITORY / "requirements-dev.txt"
STAMP = VENV / ".e4t-requirements.sha256"


def check_python() -> None:
    """Raises: Failure if this Python is too old or cannot make virtual environments."""
    if sys.version_info < OLDEST_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        raise Failure(f"This is Python {found} ({sys.executable}); run dev.py with Python 3.11 or newer.")
    if importlib.util.find_spec("ensurepip") is None:
        raise Failure(
            f"This Python ({sys.executable}) has no ensurepip module, so it cannot make a virtual environment; "
            "on Debian and Ubuntu install the system package python3-venv, then run the same command again."
        )


def make_venv() -> bool:
    """Makes `.venv` if it is not there; true if it was made now.

    Raises: Failure without Python's venv module, or with too little disk space.
    """
    has_pip = any(VENV.glob("lib/python3.*/site-packages/pip")) or (VENV / "Lib/site-packages/pip").is_dir()
    if venv_python().is_file() and has_pip:
        return False
    check_python()
    free = shutil.disk_usage(REPOSITORY).free / 2**30
    if free < NEEDED_GIB:
        raise Failure(f"{REPOSITORY} has {free:.1f} GiB free and the set-up needs {NEEDED_GIB}; free some space first.")
    with step("making the virtual environment .venv"):
        try:
            venv.create(VENV, with_pip=True, clear=True)
        except BaseException as error:
            shutil.rmtree(VENV, ignore_errors=True)
            if not isinstance(error, Exception) or isinstance(error, OSError):
                raise
            raise Failure(f"Python could not make the virtual environment {VENV}: {error}.") from error
    return True


def pip(*arguments: str, log: str, failed: str) -> None:
    """Runs pip inside `.venv`; see `run_quietly`."""
    command = [str(venv_python()), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    run_quietly(command, LOGS / log, failed)


def install(comfyui: Path, venv_is_new: bool) -> None:
    """Installs requirements-dev.txt and the requirements of `comfyui`, unless exactly these were installed before.

    A `.venv` that was made in this run is taken away again if the installation does not succeed.
    """
    files = [REQUIREMENTS, comfyui / "requirements.txt"]
    wanted = fingerprint(files)
    if STAMP.is_file() and STAMP.read_text().strip() == wanted:
        return
    size = "about 7 GB, " if sys.platform == "linux" and venv_is_new else ""
    with step(f"installing torch, ComfyUI's requirements and the tools ({size}output in .dev/logs/install.log)"):
        try:
            pip(
                *("install", "--progress-bar", "off"),
                *(argument for file in files for argument in ("-r", str(file))),
                log="install.log",
                failed="The requirements could not be installed",
            )
        except BaseException:
            STAMP.unlink(missing_ok=True)
            if venv_is_new:
                shutil.rmtree(VENV, ignore_errors=True)
            raise
        STAMP.write_text(wanted + "\n")


def fingerprint(files: list[Path]) -> str:
    """SHA-256 over the contents of the requirements files and the Python they are installed for."""
    digest = hashlib.sha256(f"{sys.version_info[:2]}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
