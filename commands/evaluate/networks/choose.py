"""From what is written on the command line to a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from e4t_core.files.file_errors import shown

from ..faults import EvaluationError
from .dlib_network import DlibNetwork
from .faces import Faces
from .file_network import MANNERS, FileNetwork
from .network import Network
from .python_network import PythonNetwork

WAYS = "dlib, openvino:FILE.xml, onnx:FILE.onnx or python:PACKAGE.MODULE:ATTRIBUTE"


def identity_networks(written: Sequence[str]) -> list[Network]:
    """The networks as written, each once.

    Raises:
        EvaluationError: one is none, or two have one name.
    """
    # Its landmarks are 100 MB: all networks share one.
    faces = cache(Faces)
    networks: list[Network] = [_network(text, faces) for text in dict.fromkeys(written)]
    names = [network.name for network in networks]
    for name in names:
        if names.count(name) > 1:
            raise EvaluationError(f"Two identity networks are called {shown(name)}: rename one of the files.")
    return networks


def _network(text: str, faces: Callable[[], Faces]) -> Network:
    kind, _, rest = text.partition(":")
    if text == "dlib":
        return DlibNetwork(faces())
    if kind in MANNERS and rest:
        return FileNetwork(Path(rest).absolute(), kind, faces)
    if kind == "python" and rest:
        return PythonNetwork(rest)
    raise EvaluationError(f"{shown(text)} is no identity network: write {WAYS}.")
