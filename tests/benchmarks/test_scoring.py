"""The scores of readings that are right, wrong, or somebody else's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.quality_report import ArmScores, gap
from benchmarks.scoring import (
    Sums,
    Target,
    Visibility,
    chance_corrected,
    leaks,
    named,
    prompt_classes,
    ratio,
    unnamed,
)
from miniworld.attributes import EDITS, Identity, Scene, identities_of
from miniworld.judge import Reading, measures, questions
from miniworld.visibility import attributes, true_value

PEOPLE = identities_of("face", "validation", 24)
SCENE = Scene(style=1, background=3, accessory=2, zoom=1)


def reading_of(identities: list[Identity], scenes: list[Scene]) -> Reading:
    """What a judge that is always right would say of renderings of these."""
    logits = {}
    for question, answers in questions().items():
        values = [0 if question == "domain" or question.startswith("cat ") else None] * len(identities)
        truth = [
            value if value is not None else int(true_value(i, s, question))
            for value, i, s in zip(values, identities, scenes, strict=True)
        ]
        logits[question] = torch.nn.functional.one_hot(torch.tensor(truth), answers).float()
    numbers = {
        name: torch.tensor([0.0 if name.startswith("cat ") else true_value(i, SCENE, name) for i in identities])
        for name in measures()
    }
    return Reading(logits, torch.zeros(len(identities), 2), numbers, torch.zeros(len(identities), 64))


def all_seen(count: int) -> Visibility:
    return Visibility({name: torch.ones(count, dtype=torch.bool) for name in attributes("face") if name not in EDITS})


TARGETS = [Target(identity, SCENE, ("style", "background")) for identity in PEOPLE]
RIGHT = reading_of(list(PEOPLE), [SCENE] * len(PEOPLE))
SHIFTED = reading_of([*PEOPLE[1:], PEOPLE[0]], [SCENE] * len(PEOPLE))


def test_a_right_reading_scores_one_and_guessing_scores_zero() -> None:
    assert ratio(named(RIGHT, TARGETS, all_seen(len(TARGETS)))) == pytest.approx(1)
    assert float(chance_corrected(torch.tensor([True, False, False, False]), 4).mean()) == pytest.approx(0)


def test_another_individual_scores_about_zero() -> None:
    score = ratio(named(SHIFTED, TARGETS, all_seen(len(TARGETS))))
    assert abs(score) < 0.15  # 24 individuals with 6 attributes of 3 to 8 values each


def test_what_cannot_be_seen_does_not_count() -> None:
    seen = all_seen(len(TARGETS))
    only = Visibility({name: counted & (name == "face skin") for name, counted in seen.seen.items()})
    wrong_hair = replace(RIGHT, logits=RIGHT.logits | {"face hair colour": SHIFTED.logits["face hair colour"]})
    assert ratio(named(wrong_hair, TARGETS, only)) == pytest.approx(1)
    nothing = Visibility({name: torch.zeros_like(counted) for name, counted in seen.seen.items()})
    assert np.isnan(ratio(named(RIGHT, TARGETS, nothing)))


def test_unnamed_is_one_for_the_individual_and_about_zero_for_another() -> None:
    seen = all_seen(len(TARGETS))
    assert unnamed(RIGHT, TARGETS, seen, PEOPLE).score() == pytest.approx(1)
    assert abs(unnamed(SHIFTED, TARGETS, seen, PEOPLE).score()) < 0.15


def test_prompt_classes_count_only_what_was_asked() -> None:
    wrong_zoom = reading_of(list(PEOPLE), [replace(SCENE, zoom=2, background=0)] * len(PEOPLE))
    found = prompt_classes(wrong_zoom, TARGETS)
    assert ratio(found["style"]) == pytest.approx(1)
    assert ratio(found["background"]) == pytest.approx(-1 / 7)
    assert np.isnan(ratio(found["zoom"])) and np.isnan(ratio(found["accessory"]))


def test_a_leak_is_the_photos_background_or_its_accessory() -> None:
    reading = reading_of(list(PEOPLE[:2]), [SCENE, SCENE])
    bare, same = Scene(background=3, accessory=0), Scene(background=0, accessory=2)
    found = leaks(reading, [bare, same])
    assert found.value.tolist() == [1, 1] and found.weight.tolist() == [1, 2]


def _arm(named_score: float) -> ArmScores:
    ones = np.ones(8)
    empty = Sums(0 * ones, ones)
    return ArmScores(Sums(named_score * ones, ones), empty, empty, {}, empty, empty)


def test_the_gap_closed_of_constant_arms_is_their_ratio() -> None:
    arms = {"other": _arm(0.1), "coarse": _arm(0.3), "vae": _arm(0.9), "e4t": _arm(0.75)}
    closed = gap(arms, "e4t", 8)
    assert (closed.value, closed.low, closed.high) == pytest.approx((0.75, 0.75, 0.75))
