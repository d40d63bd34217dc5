"""What is installed: this command's side, and ComfyUI as far as its files say."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from commands.batch.server import LEAST
from e4t_core.version import VERSION

from .faults import CheckError

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "open_clip_torch", "safetensors", "aiohttp", "pillow")


def versions() -> dict[str, str]:
    """Of this command's Python."""
    found = {
        "this pack": VERSION,
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "Python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def check_comfyui(folder: Path) -> str:
    """ComfyUI's version, as its folder says.

    Raises:
        CheckError: there is none, or it is too old for the pack.
    """
    if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
        raise CheckError(f"{folder} holds no ComfyUI: name the folder of its main.py with --comfyui.")
    try:
        said = (folder / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        said = ""
    found = re.search(r"__version__\s*=\s*[\"']([^\"']+)", said)
    numbers = tuple(map(int, re.findall(r"\d+", found[1])[:3])) if found else ()
    least = ".".join(map(str, LEAST))
    if numbers < LEAST:
        raise CheckError(
            f"{folder} holds ComfyUI {found[1] if found else 'of an old version'}, and this pack needs {least} or newer: update it."
        )
    return found[1] if found else ""
