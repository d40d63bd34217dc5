"""The person is told where the penalty on the word takes the word away, and of a limit that keeps it."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from tuned import SMOOTH, run

from e4t_core.methods.e4t.held_word import HeldWord
from e4t_core.methods.e4t.word_model import LossParts

STRONG = dataclasses.replace(SMOOTH, steps=3, batch=4, regularization=0.1)


def seen(settings, *lengths: float, diffusion: float = 0.05) -> tuple[str, ...]:
    """What is told of words with offsets so long, one for each step; each step in two micro-batches."""
    held = HeldWord(settings)
    for step, length in enumerate(lengths):
        for start in (0, 2):
            numbers = tuple(step * settings.batch + start + one for one in range(2))
            held.see(numbers, LossParts(torch.full((2,), diffusion), torch.full((2,), length**2)))
    return held.told()


def test_a_word_that_the_penalty_shortened_is_told_with_a_limit_that_would_not() -> None:
    (told,) = seen(STRONG, 10.0, 7.0, 5.0)
    # 0.1 · 100 of 0.05.
    assert "0.50 times as long" in told and "regularization (0.1) was 200 times" in told
    assert told.endswith("set regularization_limit to 0.03.")


@pytest.mark.parametrize(
    ("settings", "lengths", "diffusion"),
    [
        (STRONG, (10.0, 9.0, 8.0), 0.05),
        (dataclasses.replace(STRONG, regularization=1e-4), (10.0, 7.0, 5.0), 0.05),
        (dataclasses.replace(STRONG, train_encoder=False), (10.0, 7.0, 5.0), 0.05),
        (dataclasses.replace(STRONG, steps=1), (10.0,), 0.05),
        (dataclasses.replace(STRONG, steps=0), (), 0.05),
        (STRONG, (0.0, 0.0, 0.0), 0.05),
        (dataclasses.replace(STRONG, regularization_limit=0.1), (10.0, 7.0, 5.0), 0.05),
    ],
    ids=["still long", "a small penalty", "encoder not tuned", "one step", "no step", "no word", "limited"],
)
def test_otherwise_nothing_is_told(settings, lengths: tuple[float, ...], diffusion: float) -> None:
    assert seen(settings, *lengths, diffusion=diffusion) == ()


def test_a_tuning_tells_it_whatever_its_micro_batch() -> None:
    strong = dataclasses.replace(SMOOTH, steps=6, regularization=30.0, learning_rate=0.02)
    told = [run(dataclasses.replace(strong, micro_batch=size)).notes for size in (8, 2)]
    assert len(told[0]) == 1 and "set regularization_limit to" in told[0][0]
    assert re.sub(r"\d", "", told[0][0]) == re.sub(r"\d", "", told[1][0])
    assert run(dataclasses.replace(strong, regularization=1e-6)).notes == ()
    assert run(dataclasses.replace(strong, regularization_limit=0.1)).notes == ()
