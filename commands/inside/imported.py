"""ComfyUI and this pack in this process, imported as ComfyUI does it, without a server."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from .one_core import PACK, import_pack

ROOT = Path(__file__).resolve().parents[2]
"""Of this repository, which is the pack."""


def import_comfyui(folder: Path, arguments: Sequence[str] = ()) -> None:
    """Makes ``comfy`` and the pack (as ``e4t_pack``) importable; a second call does nothing. Call it before anything imports ``comfy``.

    Args:
        folder: holds ComfyUI's ``main.py``.
        arguments: of ComfyUI's own command line.

    Raises:
        ImportError: a package of ComfyUI's is missing, or this ComfyUI is too old for the pack.
        SystemExit: ComfyUI does not know an argument.
    """
    if PACK in sys.modules:
        return
    # ComfyUI's folder before the repository's, because both have a "nodes".
    own = [entry for entry in sys.path if Path(entry or ".").resolve() == ROOT]
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry not in own), str(ROOT)]
    import comfy.options

    comfy.options.enable_args_parsing()
    line = sys.argv
    sys.argv = ["main.py", *arguments]
    try:
        import comfy.cli_args
    finally:
        sys.argv = line
    import_pack(ROOT)


def pack(name: str) -> ModuleType:
    """A module of the pack by its dotted name, for example "nodes.host.learning.learn"."""
    return importlib.import_module(f"{PACK}.{name}")
