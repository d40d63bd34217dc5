"""State dicts out of the peer's pickles: tensors only, and exactly those that are expected."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

Shape = tuple[int, ...]
ADVICE = "download or copy it again, or convert the directory it was made with"


class PeerFileError(ValueError):
    """A file of the peer's that cannot be converted; one sentence names value, file, folder and what to do."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A state dict on the CPU. torch's restricted unpickler reads it, which calls nothing that a file names.

    Raises:
        PeerFileError: the file is missing, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise PeerFileError(
            f"File {path.name} was not found in {path.parent}: put it there, or name another directory."
        )
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        # Damaged and forbidden pickles end in errors of many kinds; all of them mean that nothing was read.
        raise PeerFileError(_unreadable(path, error)) from error
    if not isinstance(data, dict) or not data:
        raise PeerFileError(f"File {path} holds a {type(data).__name__} in place of named tensors: {ADVICE}.")
    for key, value in data.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise PeerFileError(f"Entry {key!r} of {path} is a {type(value).__name__}, not a named tensor: {ADVICE}.")
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise PeerFileError(f"Tensor {key} of {path} is sparse, quantised or without data: {ADVICE}.")
    return {key: value.detach() for key, value in data.items()}


def _unreadable(path: Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    forbidden = re.search(r"GLOBAL ([\w.]+)", text)
    if forbidden:
        return (
            f"File {path} is a pickle that asks for {forbidden[1]}, not only for tensors, so nothing of it was read:"
            " do not trust this file, and get the checkpoint from its author."
        )
    reason = re.split(r"(?<=[a-z)])\. ", text)[0][:200].rstrip(".") or type(error).__name__
    return f"File {path} could not be read as tensors ({reason}): {ADVICE}."


def check_keys(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, object] | set[str]) -> None:
    """Check that a file holds exactly the expected names.

    Raises:
        PeerFileError: tensors are missing or unknown; the first is named, with how many there are and should be.
    """
    names = set(expected)
    missing, extra = sorted(names - found.keys()), sorted(found.keys() - names)
    if missing:
        raise PeerFileError(
            f"File {path} lacks {len(missing)} of {len(names)} tensors, the first is {missing[0]}: {ADVICE}."
        )
    if extra:
        raise PeerFileError(
            f"File {path} holds {len(extra)} tensors besides the {len(names)} that belong there, the first is"
            f" {extra[0]}: {ADVICE}."
        )


def check_tensors(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Shape]) -> None:
    """Check names (:func:`check_keys`), shapes, and that all are finite float numbers.

    Raises:
        PeerFileError: the first fault.
    """
    check_keys(path, found, expected)
    for key, shape in expected.items():
        if tuple(found[key].shape) != shape:
            raise PeerFileError(
                f"Tensor {key} of {path} has shape {tuple(found[key].shape)} in place of {shape}: {ADVICE}."
            )
    check_finite(path, found)


def check_finite(path: Path, found: Mapping[str, Tensor]) -> None:
    """Check that all tensors are finite float numbers.

    Raises:
        PeerFileError: the first that is not.
    """
    for key, value in found.items():
        if not value.is_floating_point():
            raise PeerFileError(f"Tensor {key} of {path} holds {value.dtype}, not float numbers: {ADVICE}.")
        if not torch.isfinite(value).all():
            raise PeerFileError(f"Tensor {key} of {path} holds NaN or infinity: {ADVICE}.")


def size(path: Path, tensors: Mapping[str, Tensor], key: str, axis: int = 0, axes: int = 1) -> int:
    """Length of one axis of a tensor of ``axes`` axes, where the other shapes are derived from it.

    Raises:
        PeerFileError: it has another number of axes.
    """
    shape = tuple(tensors[key].shape)
    if len(shape) != axes or 0 in shape:
        raise PeerFileError(f"Tensor {key} of {path} has shape {shape} in place of {axes} axes: {ADVICE}.")
    return shape[axis]
