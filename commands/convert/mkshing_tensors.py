"""State dicts out of mkshing's pickles: tensors only, and exactly those that are expected."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from e4t_core.files.checked_file import NAME_LIMIT, TENSOR_LIMIT, check_dtypes, check_finite, check_keys, check_shapes
from e4t_core.files.file_errors import FileError, FileKind, shown, shown_name
from e4t_core.files.whole_file import check_is_file

Shape = tuple[int, ...]
# Names begin so where a network was saved as it was spread over several cards.
SPREAD = "module."


class MkshingFileError(FileError):
    """A file of mkshing's that cannot be converted; one sentence names value, file, folder and what to do."""


FILE = FileKind(
    "File",
    "download or copy it again, or convert the directory it was made with",
    MkshingFileError,
    "put it there, or name another directory",
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A state dict on the CPU. torch's restricted unpickler reads it, which calls nothing that a file names.

    Raises:
        MkshingFileError: the file is missing, damaged, or holds anything but tensors.
    """
    check_is_file(path, FILE)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        # Damaged and forbidden pickles end in errors of many kinds; all of them mean that nothing was read.
        raise _unreadable(path, error) from error
    if not isinstance(data, dict) or not data:
        raise FILE.fault(path, f"holds a {type(data).__name__} in place of named tensors")
    if len(data) > TENSOR_LIMIT:
        raise FILE.fault(path, f"holds {len(data)} tensors; at most {TENSOR_LIMIT} are read")
    for key, value in data.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise FILE.fault(path, f"holds {shown(key)}, a {type(value).__name__}, which is not a named tensor")
        if len(key) > NAME_LIMIT:
            raise FILE.fault(path, f"holds a tensor with a name of {len(key)} characters, {shown(key, 40)}")
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise FILE.fault(path, f"holds {shown_name(key)}, which is sparse, quantized or without data")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            # One number may stand for a million million: computing with them would never end.
            raise FILE.fault(path, f"holds {shown_name(key)}, whose numbers are not all there")
    if all(key.startswith(SPREAD) for key in data):
        data = {key.removeprefix(SPREAD): value for key, value in data.items()}
    return {key: value.detach() for key, value in data.items()}


def _unreadable(path: Path, error: Exception) -> FileError:
    text = " ".join(str(error).split())
    forbidden = re.search(r"GLOBAL ([\w.]+)", text)
    if forbidden:
        return FILE.fault(
            path,
            f"is a pickle that asks for {forbidden[1]}, not only for tensors, so nothing of it was read",
            "do not trust this file, and get the checkpoint from its author",
        )
    reason = re.split(r"(?<=[a-z)])\. ", text)[0].rstrip(".") or type(error).__name__
    return FILE.fault(path, f"could not be read as tensors ({reason})")


def check_tensors(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Shape]) -> None:
    """Check names, shapes, and that all are finite float numbers.

    Raises:
        MkshingFileError: the first fault.
    """
    check_keys(path, FILE, found, expected)
    check_shapes(path, FILE, found, expected)
    check_numbers(path, found)


def check_numbers(path: Path, found: Mapping[str, Tensor]) -> None:
    """Check that all tensors are finite float numbers.

    Raises:
        MkshingFileError: the first that is not.
    """
    check_dtypes(path, FILE, found)
    check_finite(path, FILE, found)


def size(path: Path, tensors: Mapping[str, Tensor], key: str, axis: int = 0, axes: int = 1) -> int:
    """Length of one axis of a tensor of ``axes`` axes, where the other shapes are derived from it.

    Raises:
        MkshingFileError: it has another number of axes.
    """
    shape = tuple(tensors[key].shape)
    if len(shape) != axes or 0 in shape:
        raise FILE.fault(path, f"holds {shown_name(key)} in the shape {shown(shape, 40)} in place of {axes} axes")
    return shape[axis]


def counted(path: Path, names: Mapping[str, object], pattern: re.Pattern[str], most: int) -> int:
    """How many layers names are numbered by: their number, so that a single high one does not count for all below it.

    Args:
        path: of the file, for messages.
        names: of its tensors.
        pattern: with the number as its first group.
        most: how many are allowed.

    Raises:
        MkshingFileError: there are more.
    """
    count = len({match[1] for name in names if (match := pattern.fullmatch(name))})
    if count > most:
        raise FILE.fault(path, f"holds {count} layers of one kind; at most {most} are read")
    return count
