"""Safetensors files, checked before anything is made of them.

The order is always the same: :func:`read_header` reads names, types and shapes; the checks compare them with what is expected;
only then :func:`read_tensors` reads numbers, and :func:`check_finite` looks at them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .file_errors import FileError, FileKind, shown, shown_name
from .whole_file import check_is_file, replacing

# Bytes. A whole Stable Diffusion XL checkpoint has 0.3 MB; trainers store some megabytes of statistics.
HEADER_LIMIT = 16 * 2**20
NAME_LIMIT = 200  # characters; a network with longer names would take minutes to build
TENSOR_LIMIT = 20_000
AXIS_LIMIT, AXES_LIMIT = 2**31, 16

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""What safetensors calls a type -> torch's."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that all of torch computes with; 8-bit floats are only stored."""


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself.

    Attributes:
        metadata: free texts.
        tensors: by name.
        bytes: size of the whole file.
    """

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    bytes: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors' shapes by name."""
        return {name: info.shape for name, info in self.tensors.items()}


class Shaped(Protocol):
    """A tensor, or what a header says of one."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def read_header(path: str | os.PathLike[str], kind: FileKind) -> Header:
    """Names, types and shapes of a safetensors file, without reading a number of it.

    Raises:
        FileError: of the kind; it is missing, no safetensors file, cut, or its header is too large.
    """
    path = Path(path)
    size = check_is_file(path, kind)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if size < 8 or size - 8 < length <= HEADER_LIMIT:
            raise kind.fault(path, f"is truncated (it has {size} bytes)", "download or copy it again")
        if HEADER_LIMIT < length <= size - 8:
            raise kind.fault(path, f"has a header of {length} bytes; at most {HEADER_LIMIT} are read")
        with safe_open(path, framework="pt") as opened:
            names = list(opened.keys())
            if len(names) > TENSOR_LIMIT:
                raise kind.fault(path, f"holds {len(names)} tensors; at most {TENSOR_LIMIT} are read")
            tensors = {name: _info(path, kind, name, opened.get_slice(name)) for name in names}
            return Header(opened.metadata() or {}, tensors, size)
    except (SafetensorError, OSError, UnicodeError, RuntimeError) as error:
        raise _unreadable(path, kind, error) from error


def _info(path: Path, kind: FileKind, name: str, part: object) -> TensorInfo:
    dtype, shape = part.get_dtype(), tuple(part.get_shape())  # type: ignore[attr-defined]
    if len(name) > NAME_LIMIT:
        raise kind.fault(path, f"has a tensor with a name of {len(name)} characters, {shown(name, 40)}")
    if len(shape) > AXES_LIMIT or max(shape, default=0) > AXIS_LIMIT:
        raise kind.fault(path, f"holds {shown_name(name)} in the shape {shown(shape, 40)}, which no tensor can have")
    if dtype not in DTYPES:
        raise kind.fault(path, f"holds {shown_name(name)} as {shown(dtype, 20)}, a type that is not read")
    return TensorInfo(DTYPES[dtype], shape)


def _unreadable(path: Path, kind: FileKind, error: Exception) -> FileError:
    # The path is said already, and a long one would push out what is wrong.
    text = str(error).replace(str(path), path.name)
    if "DefaultCPUAllocator" in text:
        return kind.fault(path, "is too large for the memory that is free", "close other programs")
    if "Incomplete" in text or "not fully covered" in text or "too small" in text.lower():
        return kind.fault(path, "is truncated (its header says more bytes than are there)", "download or copy it again")
    if isinstance(error, PermissionError):
        return kind.fault(path, "may not be read", "check its permissions")
    # torch opens the file once more, and has no type of its own for what goes wrong then.
    if isinstance(error, OSError | RuntimeError):
        return kind.fault(path, f"could not be read ({text})", "check the disk, or copy it again")
    return kind.fault(path, f"is not a safetensors file ({text})", "choose one, or download it again")


def read_tensors(path: str | os.PathLike[str], wanted: Mapping[str, TensorInfo], kind: FileKind) -> dict[str, Tensor]:
    """Tensors of a safetensors file, read into memory: what happens to the file afterwards does not change them.

    Args:
        path: of the file.
        wanted: the tensors, as its header said (``header.tensors`` or some of them).
        kind: of the file.

    Raises:
        FileError: of the kind; it could not be read, or it is no longer the file whose header was read.
    """
    path = Path(path)
    check_is_file(path, kind)
    try:
        with safe_open(path, framework="pt") as file:
            there = set(file.keys())
            tensors = {}
            for name, info in wanted.items():
                # Copied, because the library hands out the mapped file itself.
                tensor = file.get_tensor(name).clone() if name in there else None
                if tensor is None or (tensor.dtype, tuple(tensor.shape)) != (info.dtype, info.shape):
                    raise kind.fault(path, "changed while it was read", "try again")
                tensors[name] = tensor
            return tensors
    except (SafetensorError, OSError, UnicodeError, RuntimeError) as error:
        raise _unreadable(path, kind, error) from error


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str], kind: FileKind
) -> None:
    """Write a safetensors file whole or not at all, see :func:`replacing`; its folder must exist.

    Raises:
        FileError: of the kind; it could not be written.
    """
    try:
        with replacing(path) as temporary:
            _write(temporary, tensors, metadata)
    except (OSError, ValueError) as error:
        raise kind.fault(
            path,
            f"could not be written ({error})",
            "check that its folder exists, may be written to, and that the disk has room",
        ) from error


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the format: the header's length in 8 bytes, the header as JSON, all numbers.

    The library would write to a temporary file of its own, which nobody could tell from others if the program is killed.
    """
    # The widest numbers first, so that all of them are aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{shown_name(name)} is {tensor.dtype}")
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            # Viewed as bytes, because numpy knows no bfloat16.
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def check_keys(path: str | os.PathLike[str], kind: FileKind, found: Collection[str], expected: Collection[str]) -> None:
    """Check that a file holds exactly the expected names.

    Raises:
        FileError: of the kind; tensors are missing or unknown, the first is named.
    """
    missing, extra = sorted(set(expected).difference(found)), sorted(set(found).difference(expected))
    if missing:
        raise kind.fault(
            path, f"lacks {len(missing)} of {len(expected)} tensors, the first is {shown_name(missing[0])}"
        )
    if extra:
        raise kind.fault(
            path, f"holds {len(extra)} unknown tensors besides its {len(expected)}, the first is {shown_name(extra[0])}"
        )


def check_shapes(
    path: str | os.PathLike[str],
    kind: FileKind,
    found: Mapping[str, Shaped],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    """Check the shapes of the expected tensors, all of which must be there (:func:`check_keys`).

    Raises:
        FileError: of the kind; the first that has another shape.
    """
    for name, shape in expected.items():
        if tuple(found[name].shape) != tuple(shape):
            raise kind.fault(
                path,
                # The name is the longest part, and the first to be cut.
                f"has the shape {shown(tuple(found[name].shape), 40)} in place of {shown(tuple(shape), 40)} for"
                f" {shown_name(name)}",
            )


def check_dtypes(
    path: str | os.PathLike[str],
    kind: FileKind,
    found: Mapping[str, Shaped],
    allowed: Collection[torch.dtype] = FLOATS,
) -> None:
    """Check that all tensors have one of the allowed types.

    Raises:
        FileError: of the kind; the first that has not.
    """
    for name, tensor in found.items():
        if tensor.dtype not in allowed:
            raise kind.fault(path, f"holds {shown_name(name)} as {tensor.dtype}, which cannot be used")


def check_finite(path: str | os.PathLike[str], kind: FileKind, tensors: Mapping[str, Tensor]) -> None:
    """Check that no tensor holds NaN or infinity.

    Raises:
        FileError: of the kind; the first that does.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise kind.fault(path, f"holds NaN or infinity in {shown_name(name)}")


def is_finite(tensor: Tensor) -> bool:
    """Whether no number of it is NaN or infinite, for every type; whole numbers always are."""
    if not tensor.is_floating_point():
        return True
    # 8-bit floats have no isfinite of their own.
    return bool(torch.isfinite(tensor if tensor.dtype in FLOATS else tensor.float()).all())
