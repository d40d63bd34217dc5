"""The compact body of a concept: what it changes of the weights as thin factors of a few bits each.

A difference ``(M, N)`` of a matrix (a convolution's inputs and taps are its N) is kept as ``up @ down`` of some rank, see
``quantized_factors``; a vector, and a matrix that would not get smaller so, number by number (``QuantizedRows``). All codes
lie one after the other in one tensor of bytes, all steps in one of float32; in the order of names.

Differences of the concept encoder are kept in the same way. They are differences from the DOMAIN's encoder, which is at hand
when the concept is loaded, or else the concept is drawn with its fixed word.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..low_rank import GAIN, quantized_factors
from ..quantized import BITS, QuantizedRows, pack_codes, packed_size, unpack_codes
from ..weight_changes import Full, LowRank
from .checked_file import NAME_LIMIT, is_finite
from .description import check_fields, from_json, is_plain, number, table
from .file_errors import shown

MINOR = (".attn1.", ".ff.")
"""What canonical names of self-attention and feed-forward layers hold: they have a quarter of the UNet's numbers, and left out
change a face's predictions by a tenth of what convolutions do (``python -m benchmarks.compact --probes 1``)."""
CODES, STEPS = "compact.codes", "compact.steps"
"""The names of the body's two tensors."""

WEIGHTS, AXIS, AXES, NUMBERS, ALL_NUMBERS, RANK = 10_000, 2**20, 4, 2**25, 2**30, 1024
STEP = 16.0
"""The most that is read: tensors; along an axis; axes; numbers of a tensor, and of all; rank; a step. Stable Diffusion 2.x, the largest
family, has 866 million numbers, 29 million of them in one tensor."""


@dataclass(frozen=True)
class CompactSettings:
    """How small a concept is made.

    Attributes:
        rank: of the UNet's differences.
        minor_rank: of those of :data:`MINOR` layers.
        bits: of a number of a factor.
        vector_bits: of a number of a vector.
        gain: see ``quantized_factors``; of the UNet's differences.
        encoder_rank: of the encoder's differences.
        encoder_bits: of a number of their factors.
    """

    rank: int = number(1, RANK, default=26)
    minor_rank: int = number(1, RANK, default=6)
    bits: int = number(1, BITS, default=3)
    vector_bits: int = number(1, BITS, default=4)
    gain: float = number(0, 1, default=GAIN)
    encoder_rank: int = number(1, RANK, default=8)
    encoder_bits: int = number(1, BITS, default=8)

    def __post_init__(self) -> None:
        check_fields(self, "Compact settings")


@dataclass(frozen=True)
class Part:
    """One difference as it is kept.

    Attributes:
        shape: of the difference.
        rank: of its factors; 0: it is kept number by number, in rows.
        bits: of a number.
    """

    shape: tuple[int, ...] = number(1, AXIS, count=(1, AXES))
    rank: int = number(0, RANK)
    bits: int = number(1, BITS)

    def __post_init__(self) -> None:
        check_fields(self, "Compact part")
        if math.prod(self.shape) > NUMBERS:
            raise ValueError(f"Compact part of shape {shown(self.shape)} is larger than any weight of a base model.")
        if self.rank > min(self.matrix):
            raise ValueError(f"Compact part of shape {shown(self.shape)} cannot have the rank {self.rank}.")

    @property
    def matrix(self) -> tuple[int, int]:
        """The difference as a matrix (M, N); a vector is one row."""
        rows = self.shape[0] if len(self.shape) > 1 else 1
        return rows, math.prod(self.shape) // rows

    def rows(self) -> tuple[tuple[int, int], ...]:
        """Shapes ``(R, N)`` of the rows of codes that it is made of."""
        m, n = self.matrix
        return ((self.rank, m), (self.rank, n)) if self.rank else ((m, n),)

    def bytes(self) -> int:
        """Bytes of codes and steps."""
        return sum(packed_size(r * n, self.bits) + 4 * r for r, n in self.rows())


@dataclass(frozen=True)
class CompactDescription:
    """What a compact body holds; everything is bounded before anything is built.

    Attributes:
        weights: of the UNet's differences, by canonical name.
        encoder: of the concept encoder's differences, by name.

    Raises:
        ValueError: something is out of range.
    """

    weights: Mapping[str, Part] = table(WEIGHTS)
    encoder: Mapping[str, Part] = table(WEIGHTS)

    def __post_init__(self) -> None:
        check_fields(self, "Compact description")
        for name, part in self.parts():
            if not isinstance(name, str) or not 0 < len(name) <= NAME_LIMIT or not is_plain(name):
                raise ValueError(f"Compact description names {shown(name)}, which no weight is called.")
            if not isinstance(part, Part):
                raise ValueError(f"Compact description says {shown(part)} of {shown(name)}, which is no part.")
        if sum(math.prod(part.shape) for _, part in self.parts()) > ALL_NUMBERS:
            raise ValueError("Compact description holds more numbers than any base model has.")

    def parts(self) -> Iterator[tuple[str, Part]]:
        """All parts with their names, in the order of the codes: by name, whatever order JSON had."""
        yield from sorted(self.weights.items())
        yield from sorted(self.encoder.items())

    def to_json(self) -> dict[str, Any]:
        """For :func:`description_from_json`: name -> [bits, rank, axis, axis ...]."""
        tables = (self.weights, self.encoder)
        weights, encoder = ({name: [p.bits, p.rank, *p.shape] for name, p in parts.items()} for parts in tables)
        return {"weights": weights, "encoder": encoder}


def description_from_json(data: Any) -> CompactDescription:
    """The description as it was written.

    Raises:
        ValueError: it is none, or something of it is out of range; one sentence.
    """
    if not isinstance(data, dict) or not all(isinstance(data.get(key), dict) for key in ("weights", "encoder")):
        raise ValueError(f"Compact description = {shown(data)} must be a table with weights and encoder")
    made: dict[str, Any] = dict(data)
    for key in ("weights", "encoder"):
        if len(data[key]) > WEIGHTS:
            raise ValueError(f"Compact description has {len(data[key])} {key}: at most {WEIGHTS} are read")
        made[key] = {name: _part(name, numbers) for name, numbers in data[key].items()}
    described: CompactDescription = from_json(CompactDescription, made)
    return described


def _part(name: str, numbers: Any) -> Part:
    if not isinstance(numbers, list) or len(numbers) < 3:
        raise ValueError(f"Compact part {shown(name)} = {shown(numbers)} must be bits, rank and axes")
    bits, rank, *shape = numbers
    part: Part = from_json(Part, {"shape": shape, "rank": rank, "bits": bits})
    return part


def expected_tensors(described: CompactDescription) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of the body's tensors by name: all that a file's header must say of them."""
    rows = [(part, shape) for _, part in described.parts() for shape in part.rows()]
    codes = sum(packed_size(r * n, part.bits) for part, (r, n) in rows)
    steps = sum(r for _, (r, _) in rows)
    return {CODES: ((codes,), torch.uint8), STEPS: ((steps,), torch.float32)}


def part_of(shape: tuple[int, ...], rank: int, bits: int, vector_bits: int) -> Part:
    """How a difference of this shape is kept: as factors where that is smaller, else number by number."""
    whole = Part(shape, 0, bits if len(shape) > 1 else vector_bits)
    if len(shape) < 2:
        return whole
    factors = Part(shape, min(rank, *whole.matrix), bits)
    return factors if factors.bytes() < whole.bytes() else whole


def weight_part(name: str, shape: tuple[int, ...], settings: CompactSettings) -> Part:
    """How the UNet's difference of this canonical name is kept."""
    rank = settings.minor_rank if any(text in name for text in MINOR) else settings.rank
    return part_of(shape, rank, settings.bits, settings.vector_bits)


def encoder_part(name: str, shape: tuple[int, ...], settings: CompactSettings) -> Part:
    """How a difference of the encoder is kept, whatever its name."""
    return part_of(shape, settings.encoder_rank, settings.encoder_bits, settings.vector_bits)


def describe(
    weights: Mapping[str, tuple[int, ...]], encoder: Mapping[str, tuple[int, ...]], settings: CompactSettings
) -> CompactDescription:
    """The description of differences of these shapes."""
    return CompactDescription(
        {name: weight_part(name, tuple(shape), settings) for name, shape in weights.items()},
        {name: encoder_part(name, tuple(shape), settings) for name, shape in encoder.items()},
    )


def pack(
    differences: Mapping[str, Tensor | LowRank],
    encoder: Mapping[str, Tensor],
    settings: CompactSettings | None = None,
    on_part: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[dict[str, Tensor], CompactDescription]:
    """The body of a concept: its tensors by name (on the CPU), and their description.

    Args:
        differences: the concept's own, by canonical name. All of Stable Diffusion 1.5 take about 20 seconds of one CPU core;
            a mapping may make them when they are asked for, each once. Factors that are thin enough already stay as they are.
        encoder: as ``OffsetEncoder.difference_from`` gives it, by name.
        settings: how small it is made.
        on_part: called after every difference with how many are done, and of how many; what it raises passes through.

    Raises:
        ValueError: a difference holds NaN or infinity, or is larger than what is read again.
    """
    settings = settings or CompactSettings()
    found: tuple[dict[str, Part], dict[str, Part]] = {}, {}
    kinds: tuple[tuple[Mapping[str, Tensor | LowRank], Any, float], ...]
    kinds = (differences, weight_part, settings.gain), (encoder, encoder_part, 0.0)
    codes, steps, total = [], [], len(differences) + len(encoder)
    for parts, (tensors, part_for, gain) in zip(found, kinds, strict=True):
        for name in sorted(tensors):
            change = tensors[name]
            part = part_for(name, tuple(change.shape), settings)
            if isinstance(change, LowRank) and change.rank <= part.rank:
                part = dataclasses.replace(part, rank=change.rank)
            difference = change.difference() if isinstance(change, LowRank) else change
            if not is_finite(difference):
                raise ValueError(f"The difference of {name} holds NaN or infinity: learn the concept again.")
            parts[name] = part
            for rows in _rows_of(change, difference, part, gain):
                codes.append(pack_codes(rows.codes.cpu(), rows.bits))
                steps.append(rows.steps.cpu())
            on_part(len(found[0]) + len(found[1]), total)
    described = CompactDescription(*found)
    empty = {CODES: torch.zeros(0, dtype=torch.uint8), STEPS: torch.zeros(0)}
    return (empty | {CODES: torch.cat(codes), STEPS: torch.cat(steps)} if codes else empty), described


def _rows_of(change: Tensor | LowRank, difference: Tensor, part: Part, gain: float) -> tuple[QuantizedRows, ...]:
    if isinstance(change, LowRank) and change.rank == part.rank:
        return QuantizedRows.of(change.up.T, part.bits), QuantizedRows.of(change.down, part.bits)
    matrix = difference.detach().float().reshape(part.matrix)
    if part.rank:
        return quantized_factors(matrix, part.rank, part.bits, gain)
    return (QuantizedRows.of(matrix, part.bits),)


@dataclass(frozen=True, eq=False)
class CompactBody:
    """What :func:`unpack` finds.

    Attributes:
        weights: the UNet's changes.
        encoder: what ``OffsetEncoder.plus`` of the domain's encoder takes, by name, float32.
    """

    weights: tuple[LowRank | Full, ...]
    encoder: dict[str, Tensor]

    def difference(self, name: str) -> Tensor:
        """The UNet's difference of this canonical name, float32, of the weight's shape."""
        return next(change for change in self.weights if change.name == name).difference()


@torch.no_grad()
def unpack(tensors: Mapping[str, Tensor], described: CompactDescription) -> CompactBody:
    """The changes of a body; check its header against :func:`expected_tensors` first.

    Raises:
        ValueError: tensors are missing, of another shape or type, or steps are negative or not finite.
    """
    for name, (shape, dtype) in expected_tensors(described).items():
        tensor = tensors.get(name)
        if tensor is None or (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
            found = None if tensor is None else (tuple(tensor.shape), tensor.dtype)
            raise ValueError(f"The compact body's {name} is {found} in place of {(shape, dtype)}.")
    steps = tensors[STEPS]
    # NaN fails every comparison.
    if not bool(((steps >= 0) & (steps <= STEP)).all()):
        raise ValueError(f"The compact body's steps must be finite numbers from 0 to {STEP:g}.")
    reader = _Reader(tensors[CODES], steps)
    weights: list[LowRank | Full] = []
    for name, part in sorted(described.weights.items()):
        rows = [reader.next(shape, part.bits) for shape in part.rows()]
        if part.rank:
            weights.append(LowRank(name, rows[0].T.contiguous(), rows[1], part.shape))
        else:
            weights.append(Full.of(name, rows[0].reshape(part.shape)))
    encoder = {}
    for name, part in sorted(described.encoder.items()):
        rows = [reader.next(shape, part.bits) for shape in part.rows()]
        encoder[name] = (rows[0].T @ rows[1] if part.rank else rows[0]).reshape(part.shape)
    return CompactBody(tuple(weights), encoder)


class _Reader:
    """Rows of codes, one after the other."""

    def __init__(self, codes: Tensor, steps: Tensor) -> None:
        self._codes, self._steps, self._code, self._step = codes, steps, 0, 0

    def next(self, shape: tuple[int, int], bits: int) -> Tensor:
        """The values ``(R, N)`` of the next rows."""
        rows, columns = shape
        size = packed_size(rows * columns, bits)
        codes = unpack_codes(self._codes[self._code : self._code + size], rows * columns, bits)
        steps = self._steps[self._step : self._step + rows]
        self._code, self._step = self._code + size, self._step + rows
        return QuantizedRows(codes.reshape(rows, columns), steps, bits).values()


def bytes_of(described: CompactDescription) -> int:
    """Bytes of the body's tensors; its description in JSON comes on top."""
    return sum(part.bytes() for _, part in described.parts())
