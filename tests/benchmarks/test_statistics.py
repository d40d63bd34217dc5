"""Intervals and gap closed, on numbers whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.statistics import bootstrap, gap_closed, resamples, weighted_ratio, wilson


def test_resamples_draw_as_many_identities_as_there_are() -> None:
    drawn = resamples(7, seed=1, number=500)
    assert drawn.shape == (500, 7) and (drawn.sum(1) == 7).all()
    assert np.array_equal(drawn, resamples(7, seed=1, number=500))
    assert drawn.mean() == pytest.approx(1)


def test_a_mean_gets_the_interval_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(0.4, 0.2, 200)
    interval = bootstrap(lambda w: weighted_ratio(w, values, np.ones(200)), 200)
    half = 1.96 * values.std() / math.sqrt(200)
    assert interval.value == pytest.approx(values.mean())
    # 10,000 resamples place a 95 % limit within about two per cent of the half-width.
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_differences_are_paired() -> None:
    first = np.random.default_rng(0).normal(0, 5, 50)
    second = first + 0.1
    ones = np.ones(50)
    difference = bootstrap(lambda w: weighted_ratio(w, second, ones) - weighted_ratio(w, first, ones), 50)
    assert difference.low == pytest.approx(0.1) and difference.high == pytest.approx(0.1)


def test_ratios_are_recomputed_in_each_resample() -> None:
    value, weight = np.array([1.0, 0.0]), np.array([1.0, 3.0])
    weights = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    assert weighted_ratio(weights, value, weight).tolist() == [0.25, 1.0, 0.0]


def test_gap_closed_takes_the_larger_floor() -> None:
    closed = gap_closed(np.array([0.7, 0.2]), [np.array([0.1, 0.2]), np.array([0.3, 0.0])], np.array([0.9, 1.0]))
    assert closed == pytest.approx([(0.7 - 0.3) / 0.6, 0.0])


@pytest.mark.parametrize(("right", "count", "low", "high"), [(90, 100, 0.8256, 0.9448), (0, 10, 0.0, 0.2775)])
def test_wilsons_limits(right: int, count: int, low: float, high: float) -> None:
    interval = wilson(right, count)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-3)


def test_nothing_counted_is_no_number() -> None:
    assert math.isnan(wilson(0, 0).low)
