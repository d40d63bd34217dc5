"""A weight's difference at rest: half precision with a scale, where that loses nothing that could be measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOST = 1e-3
"""Share of a difference's energy (its sum of squares) from which on rounding counts as a loss."""

SMALLEST_SCALE = 2.0**-10
"""Finer than any difference of a network needs: float16 then keeps 11 bits from 6e-8 upwards, and steps of 6e-11 below.

A scale becomes a factor of the stored numbers, and some devices bring a factor into the numbers' own type before they
multiply: this one stays a normal float16 number, also when a person's strength makes it sixteen times smaller. With a
bound, nearly all differences of a concept have the same scale as well, so a host handles them together.
"""

# Stored numbers stay below 2**15, half of what float16 can hold, so that none is rounded to infinity.
_LARGEST_EXPONENT = 15


@dataclass(frozen=True, eq=False)
class StoredDifference:
    """``values * scale``: what is added to a weight, as it is kept in RAM.

    Attributes:
        values: of the weight's shape, on the CPU; float16, or float32 where that would have lost :data:`LOST` or more.
        scale: a power of two, so that scaling itself rounds nothing; 1 for float32.
    """

    values: Tensor
    scale: float

    @classmethod
    @torch.no_grad()
    def of(cls, difference: Tensor) -> StoredDifference:
        """Store a difference, finite and of any float type; the work is done on its device.

        Its largest number decides the scale. The share of energy that is lost is ``|stored - d|^2 / |d|^2``; about 4e-8
        for numbers as they come from training, because float16 has 11 bits. What stays in float32 may be the tensor given.
        """
        difference = difference.detach().float()
        largest = float(difference.abs().max())
        scale = max(SMALLEST_SCALE, 2.0 ** (math.frexp(largest)[1] - _LARGEST_EXPONENT))
        half = (difference / scale).half()
        if energy_lost(difference, half.float().mul_(scale)) < LOST:
            return cls(half.cpu(), scale)
        return cls(difference.cpu(), 1.0)

    def value(self) -> Tensor:
        """The difference in float32, of the weight's shape; a new tensor, unless it is stored so."""
        return self.values if self.values.dtype == torch.float32 else self.values.float().mul_(self.scale)


def energy_lost(wanted: Tensor, got: Tensor) -> float:
    """Share of a difference's energy that ``got``, of the same shape, lacks: ``|got - wanted|^2 / |wanted|^2``.

    0 where there is none to lose; NaN where ``wanted`` is not finite.
    """
    largest = wanted.abs().max()
    if largest == 0:
        return 0.0
    # In units of the largest number: squares of small ones would be zero in float32.
    lost, whole = ((part / largest).square_().sum() for part in (got - wanted, wanted))
    return float(lost / whole)
