"""Files that are written whole or not at all, and safetensors files that are checked before anything is made of them.

Every kind of file has a :class:`FileKind`, which says how it is called, what helps, and which error is raised. The order
is always the same: :func:`read_header` reads names, types and shapes; the checks compare them with what is expected;
only then :func:`read_tensors` reads numbers, and :func:`check_finite` looks at them.
"""

from __future__ import annotations

import os
import reprlib
import secrets
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

MESSAGE_LIMIT = 300  # characters
# Room for what is wrong, however long the path is.
FAULT_ROOM = 90
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
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that all of torch computes with; 8-bit floats are only stored."""


class FileError(ValueError):
    """A file that cannot be used or written; the message is one sentence that names it, the fault and what to do."""


@dataclass(frozen=True)
class FileKind:
    """A kind of file, for messages.

    Attributes:
        name: how it is called at the beginning of a sentence ("Domain file").
        advice: what to do about a damaged one.
        error: what is raised.
        missing: what to do about a missing one.
    """

    name: str
    advice: str = "download or make it again"
    error: type[FileError] = FileError
    missing: str = "put it there, or correct the path"

    def fault(self, path: str | os.PathLike[str], text: str, advice: str = "") -> FileError:
        """The error to raise: "<name> <path> <text>: <advice>.", at most 300 characters, the path's end kept."""
        advice = advice or self.advice
        room = MESSAGE_LIMIT - len(self.name) - len(advice) - len("  : .")
        place = shortened(os.fspath(path), max(room - FAULT_ROOM, 40), keep_end=True)
        return self.error(shortened(f"{self.name} {place} {shortened(text, room - len(place))}: {advice}."))


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


def shortened(text: str, limit: int = MESSAGE_LIMIT, keep_end: bool = False) -> str:
    """A text for a message: at most ``limit`` characters, control characters and lone surrogates escaped.

    Args:
        text: of any length.
        limit: characters.
        keep_end: cut the beginning off, as is right for a path; else the end.
    """
    cut = text[-limit:] if keep_end else text[:limit]
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
    if len(text) <= limit and len(safe) <= limit:
        return safe
    return f"...{safe[3 - limit :]}" if keep_end else f"{safe[: limit - 3]}..."


def shown(value: object, limit: int = 80) -> str:
    """A value from a file for a message, whatever it is: long lists and texts are cut before they are written out."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = brief.maxlong = limit
    try:
        return shortened(brief.repr(value), limit)
    except ValueError:  # Python does not write whole numbers of more than 4300 digits out
        return "a number of thousands of digits"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside ``path`` to write to; it takes its place when the block ends without an error.

    Whoever reads sees the old file or the whole new one, never a part. An error leaves the old one and nothing else. The mode is
    the old file's, or that of any new file (by the umask). A link is followed: the file it names is replaced. Whoever
    opened the temporary file must have closed it when the block ends, and on Windows the old file too.

    Raises:
        OSError: the folder is missing or may not be written to, or the disk is full.
    """
    target = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)
    # Its own name may be as long as the system allows; 40 characters leave room in any encoding.
    temporary = target.with_name(f".{target.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    # Made here, because some writers make their files readable for one user only.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def check_is_file(path: str | os.PathLike[str], kind: FileKind) -> int:
    """Check that there is an ordinary file; its size in bytes.

    Raises:
        FileError: of the kind; nothing is there, it is a folder or a pipe, or it may not be looked at.
    """
    found = _status(Path(path), kind)
    if stat.S_ISDIR(found.st_mode):
        raise kind.fault(path, "is a folder", "name the file")
    if not stat.S_ISREG(found.st_mode):
        raise kind.fault(path, "is no ordinary file", "name a file")
    return found.st_size


def check_is_folder(path: str | os.PathLike[str], kind: FileKind) -> None:
    """Check that there is a folder and that what lies in it may be opened.

    Raises:
        FileError: of the kind; nothing is there, it is a file, or it may not be entered.
    """
    if not stat.S_ISDIR(_status(Path(path), kind).st_mode):
        raise kind.fault(path, "is a file, not a folder", "name the folder it lies in")
    try:
        os.stat(os.path.join(path, os.curdir))
    except PermissionError as error:
        raise kind.fault(path, "may not be entered", "check its permissions") from error


def _status(path: Path, kind: FileKind) -> os.stat_result:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise kind.fault(
            path.name, f"was not found in {shortened(str(path.parent), 120, True)}", kind.missing
        ) from error
    except PermissionError as error:
        raise kind.fault(path, "may not be read", "check the permissions of its folder") from error
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise kind.fault(path, f"could not be looked for ({reason})", "correct the path") from error


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
    except (SafetensorError, OSError, UnicodeError) as error:
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
    text = str(error)
    if "Incomplete" in text or "not fully covered" in text or "too small" in text.lower():
        return kind.fault(path, "is truncated (its header says more bytes than are there)", "download or copy it again")
    if isinstance(error, PermissionError):
        return kind.fault(path, "may not be read", "check its permissions")
    if isinstance(error, OSError):
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
    except (SafetensorError, OSError, UnicodeError) as error:
        raise _unreadable(path, kind, error) from error


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str], kind: FileKind
) -> None:
    """Write a safetensors file whole or not at all, see :func:`replacing`; its folder must exist.

    Raises:
        FileError: of the kind; it could not be written.
    """
    state: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        # The library refuses tensors that share memory; weights that are tied do.
        state[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in storages else tensor
        storages.add(tensor.untyped_storage().data_ptr())
    try:
        with replacing(path) as temporary:
            save_file(state, temporary, metadata=dict(metadata))
    except (OSError, SafetensorError, UnicodeError, ValueError) as error:
        raise kind.fault(
            path,
            f"could not be written ({error})",
            "check that its folder exists, may be written to, and that the disk has room",
        ) from error


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


def shown_name(name: str) -> str:
    """A tensor's name for a message, its end kept."""
    return shortened(name, 90, keep_end=True)
