"""Means over people, and between which values they lie: people are drawn anew, with replacement (bootstrap)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES, LEVEL = 5000, 0.95


@dataclass(frozen=True)
class Interval:
    """A value and its two-sided 95 % limits."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean(values: Sequence[float]) -> Interval:
    """The mean of one value for each person."""
    given = np.asarray(values, np.float64)
    return _interval(lambda weights: weights @ given / weights.sum(1), len(given))


def share(values: Sequence[float], floors: Sequence[float], ceilings: Sequence[float]) -> Interval:
    """How far the mean is on the way from the floors' mean (0) to the ceilings' (1); the three of a person go together."""
    value, floor, ceiling = (np.asarray(given, np.float64) for given in (values, floors, ceilings))

    def way(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((weights @ (value - floor)) / (weights @ (ceiling - floor)))

    return _interval(way, len(value))


def _interval(statistic: Callable[[np.ndarray], np.ndarray], count: int) -> Interval:
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    values = statistic(draws.astype(np.float64))
    values = values[np.isfinite(values)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (np.nan, np.nan)
    return Interval(float(statistic(np.ones((1, count)))[0]), float(low), float(high))
