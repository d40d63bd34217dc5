"""Intervals: bootstrap over identities with ratios recomputed inside, and Wilson's limits for counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and its two-sided 95 % limits."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def resamples(count: int, seed: int = 0, number: int = RESAMPLES) -> np.ndarray:
    """How often each of ``count`` identities stands in each resample: ``(number, count)``, rows sum to ``count``."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=number)


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], count: int, seed: int = 0) -> Interval:
    """The interval of ``statistic``, which takes weights ``(R, count)`` of identities and gives ``(R,)`` values.

    All arms are weighted by the same resample, so differences and ratios between arms are paired.
    """
    value = float(statistic(np.ones((1, count)))[0])
    values = statistic(resamples(count, seed).astype(float))
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def weighted_ratio(weights: np.ndarray, value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Sums of ``value`` over sums of ``weight`` (both ``(count,)``, per identity) for each resample: ``(R,)``."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ value) / (weights @ weight)


def gap_closed(arm: np.ndarray, floors: Sequence[np.ndarray], ceiling: np.ndarray) -> np.ndarray:
    """``(arm - floor) / (ceiling - floor)``; the floor is the larger of several in each resample. All ``(R,)``."""
    floor = np.maximum.reduce(list(floors))
    return (arm - floor) / (ceiling - floor)


def wilson(right: float, count: int, z: float = 1.959964) -> Interval:
    """A share of ``count`` with Wilson's two-sided 95 % limits."""
    if count == 0:
        return Interval(math.nan, math.nan, math.nan)
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(share, middle - half, middle + half)
