"""Where things stand. Everything that dev.py makes lies in `.venv` and `.dev`, never in an artist's folders."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
VENV = REPOSITORY / ".venv"
DEV = REPOSITORY / ".dev"
DOWNLOADS = DEV / "dl"
FETCHED_COMFYUI = DEV / "comfyui"
LOGS = DEV / "logs"
BASE = DEV / "base"
"""The base directory (models, input, output, custom_nodes, user) of the ComfyUI that `demo` and `serve` start."""
DEMO_OUTPUT = DEV / "demo"

PACK_NAME = "comfyui-e4t"
WORKFLOWS = REPOSITORY / "workflows"


def venv_python() -> Path:
    """The interpreter inside `.venv`, whether or not it is there yet."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
