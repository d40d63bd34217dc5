"""What a safetensors file says of itself in its header: names, types and shapes, without reading a weight."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Shapes = Mapping[str, tuple[int, ...]]
LARGEST = 100_000_000  # bytes of a header; safetensors' own limit
BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


class HeaderError(ValueError):
    """A model file that cannot be what it should be; the message is one sentence that names it."""


@dataclass(frozen=True)
class Header:
    """Attributes:
    shapes: of the tensors by name.
    metadata: free texts.
    """

    shapes: Shapes
    metadata: Mapping[str, str]


def read_header(path: Path, what: str) -> Header:
    """The header of a safetensors file, checked against the file's size.

    Args:
        path: of the file.
        what: it should be ("base model"), for messages.

    Raises:
        HeaderError: it is missing, no safetensors file, or cut.
    """
    if not path.is_file():
        raise HeaderError(f"The {what} {path.name} was not found in {path.parent}: put it there, or correct the path.")
    length = path.stat().st_size
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= min(LARGEST, length - 8):
                raise ValueError(f"its header would have {size} bytes")
            data = json.loads(file.read(size))
        metadata = data.pop("__metadata__", {})
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in data.items()}
        ends = [int(entry["data_offsets"][1]) for entry in data.values()]
        for name, entry in data.items():
            start, end = entry["data_offsets"]
            if entry["dtype"] in BYTES and end - start != math.prod(shapes[name]) * BYTES[entry["dtype"]]:
                raise ValueError(f"the size of {name} is not that of its shape")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise HeaderError(
            f"The {what} {path} is no safetensors file ({error}): choose one, or download it again."
        ) from error
    except OSError as error:
        raise HeaderError(f"The {what} {path} could not be read ({error}): check its permissions.") from error
    whole = 8 + size + max(ends, default=0)
    if length != whole:
        raise HeaderError(
            f"The {what} {path} is cut or damaged: it has {length} bytes, its header says {whole}: download it again."
        )
    return Header(shapes, metadata)


def without_prefix(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
