"""Numbers of a few bits: rows of codes, each row with one step.

    x ~ (code - (2^bits - 1) / 2) * step,      code in 0 .. 2^bits - 1

There is no zero among the levels, so that one bit is the row's sign times its mean size. A row's step is the one of some
candidates that loses the least energy, which for few bits is far below "largest number / levels".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

BITS = 8
"""The most that a code has."""

# How much of a row's range the levels cover; what lies outside becomes the last level.
_COVERED = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.42, 0.35, 0.28, 0.22)
_FEW = 64
_NEAR = (1.0, 0.85, 1.18)


@dataclass(frozen=True, eq=False)
class QuantizedRows:
    """Attributes:
    codes: ``(R, N)`` uint8, each below ``2^bits``.
    steps: ``(R,)`` float32, at least 0.
    bits: of a code, 1 to 8.
    """

    codes: Tensor
    steps: Tensor
    bits: int

    @classmethod
    @torch.no_grad()
    def of(cls, rows: Tensor, bits: int) -> QuantizedRows:
        """Quantize ``(R, N)``, finite and of any float type; on its device."""
        rows = rows.detach().float()
        middle = _middle(bits)
        largest = rows.abs().amax(dim=1)
        # Where the rows were quantized before, the smallest number is half a step, and they stay as they are; of a few numbers
        # all may lie further out.
        smallest = rows.abs().amin(dim=1)
        odd = range(1, 2**bits if rows.shape[1] < _FEW else 2, 2)
        again = [2 * smallest / halves for halves in odd]
        return cls._best(rows, (*again, *(covered * largest / (middle + 0.5) for covered in _COVERED)), bits)

    @classmethod
    @torch.no_grad()
    def near(cls, rows: Tensor, steps: Tensor, bits: int) -> QuantizedRows:
        """Quantize rows whose steps were ``steps`` ``(R,)`` when they were nearly the same; a quarter of :meth:`of`'s work."""
        return cls._best(rows.detach().float(), [share * steps for share in _NEAR], bits)

    @classmethod
    def _best(cls, rows: Tensor, candidates: Iterable[Tensor], bits: int) -> QuantizedRows:
        """With the candidate of the steps ``(R,)`` that loses least, row by row."""
        middle, top = _middle(bits), 2**bits - 1
        best = torch.full_like(rows[:, 0], torch.inf)
        steps = torch.zeros_like(best)
        for candidate in candidates:
            levels = _levels(rows, candidate, middle, top)
            # The step that suits these codes best, by least squares.
            step = (rows * levels).sum(dim=1) / levels.square().sum(dim=1)
            lost = (rows - _levels(rows, step, middle, top) * step[:, None]).square().sum(dim=1)
            better = lost < best
            best, steps = torch.where(better, lost, best), torch.where(better, step, steps)
        codes = (_levels(rows, steps, middle, top) + middle).to(torch.uint8)
        return cls(codes, steps, bits)

    def values(self) -> Tensor:
        """``(R, N)`` float32."""
        return (self.codes.float() - _middle(self.bits)) * self.steps[:, None]


def _middle(bits: int) -> float:
    return (2**bits - 1) / 2


def _levels(rows: Tensor, step: Tensor, middle: float, top: int) -> Tensor:
    """The nearest level of each number in units of its row's step: ``-middle, -middle + 1 .. middle``."""
    # A row of zeros has the step 0.
    scaled = rows / step.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    return (scaled + middle).round_().clamp_(0, top).sub_(middle)


def packed_size(count: int, bits: int) -> int:
    """Bytes of so many codes."""
    return -(-count * bits // 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """All codes one after the other, lowest bit first, as bytes ``(packed_size,)``; the last byte is filled with zeros."""
    planes = torch.stack([(codes.flatten() >> bit) & 1 for bit in range(bits)], dim=1).flatten()
    planes = torch.nn.functional.pad(planes, (0, -len(planes) % 8)).reshape(-1, 8)
    packed = torch.zeros(len(planes), dtype=torch.uint8)
    for bit in range(8):
        packed |= planes[:, bit] << bit
    return packed


def unpack_codes(packed: Tensor, count: int, bits: int) -> Tensor:
    """``(count,)`` uint8, see :func:`pack_codes`.

    Raises:
        ValueError: ``packed`` has another size than so many codes have.
    """
    if packed.dtype != torch.uint8 or packed.shape != (packed_size(count, bits),):
        raise ValueError(
            f"{count} codes of {bits} bits take {packed_size(count, bits)} bytes, but {tuple(packed.shape)} of"
            f" {packed.dtype} are there."
        )
    planes = torch.stack([(packed >> bit) & 1 for bit in range(8)], dim=1).flatten()[: count * bits].reshape(-1, bits)
    codes = torch.zeros(count, dtype=torch.uint8)
    for bit in range(bits):
        codes |= planes[:, bit] << bit
    return codes
