"""The comparison's arithmetic: when a curve reaches an identity, what it holds at equal prompt scores, and who is on the front."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

AT_ONCE = 1e-9
"""In place of a time of 0, which has no logarithm."""


def time_to(level: np.ndarray, times: Sequence[float], curves: np.ndarray) -> np.ndarray:
    """When curves first reach a level ``(R,)``; infinity where they never do.

    Between two points a curve is straight over the logarithm of time. What is reached at the first point is reached there: nothing
    is known of before.

    Args:
        level: one for each of R curves.
        times: of the P points, ascending.
        curves: ``(R, P)``.
    """
    logs = np.log(np.maximum(times, AT_ONCE))
    found = np.where(curves[:, 0] >= level, logs[0], np.inf)
    for number in range(1, len(times)):
        before, after = curves[:, number - 1], curves[:, number]
        crosses = np.isinf(found) & (before < level) & (after >= level)
        with np.errstate(divide="ignore", invalid="ignore"):
            at = logs[number - 1] + (level - before) / (after - before) * (logs[number] - logs[number - 1])
        found = np.where(crosses, at, found)
    return np.exp(found)


def identity_at_prompt(level: np.ndarray, prompts: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """The highest identity on curves where their prompt score is at least a level; all ``(R,)``, NaN where it is nowhere.

    Both scores are straight between two points.

    Args:
        level: one for each of R curves.
        prompts, identities: ``(R, P)``.
    """
    enough = prompts >= level[:, None]
    best = np.where(enough, identities, -np.inf).max(axis=1)
    for number in range(1, prompts.shape[1]):
        first, second = prompts[:, number - 1], prompts[:, number]
        crosses = enough[:, number - 1] != enough[:, number]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (level - first) / (second - first)
        at = identities[:, number - 1] + share * (identities[:, number] - identities[:, number - 1])
        best = np.maximum(best, np.where(crosses, at, -np.inf))
    return np.where(np.isfinite(best), best, np.nan)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Numbers of the points than which no other is better in one score and at least as good in the other."""

    def is_beaten(x: float, y: float) -> bool:
        return any(a >= x and b >= y and (a > x or b > y) for a, b in points)

    return [number for number, point in enumerate(points) if not is_beaten(*point)]
