"""Several photos take more steps than one."""

from __future__ import annotations

import dataclasses

import pytest
from tiny import tiny_photos
from tuned import SMOOTH, identical, run

from e4t_core.methods.e4t.hypernetwork import HyperNetworkSettings
from e4t_core.methods.e4t.settings import FACE
from e4t_core.methods.lora import LoRA

FEW = dataclasses.replace(SMOOTH, steps=2, more_steps=0.5)


@pytest.mark.parametrize(
    ("photos", "steps", "decays"),
    [(1, 15, False), (2, 22, True), (3, 30, True), (5, 45, True), (10, 82, True), (500, 82, True)],
)
def test_each_further_photo_adds_half_of_the_steps_of_one(photos: int, steps: int, decays: bool) -> None:
    found = FACE.for_photos(photos)
    assert (found.steps, found.rate_decay, found.more_steps) == (steps, decays, 0.0)
    assert found.for_photos(photos) == found, "what counts is not counted twice"


def test_a_tuning_takes_them_and_its_concept_says_so() -> None:
    pair = tiny_photos(2)
    learned = run(FEW, photos=pair)
    assert len(learned.losses) == 3 and learned.settings == FEW.for_photos(2)
    asked = dataclasses.replace(FEW, steps=3, rate_decay=True, more_steps=0.0)
    assert identical(learned, run(asked, photos=pair)) and learned.fingerprint == run(asked, photos=pair).fingerprint
    assert len(run(dataclasses.replace(FEW, more_steps=0.0), photos=pair).losses) == 2


def test_one_photo_is_learned_as_if_there_were_no_such_setting() -> None:
    plain = run(dataclasses.replace(FEW, more_steps=0.0))
    assert identical(run(FEW), plain) and run(FEW).fingerprint == plain.fingerprint
    assert "more_steps" not in FEW.for_photos(1).learned_with()


def test_without_steps_there_are_none_of_many_photos() -> None:
    at_once = HyperNetworkSettings.of(FACE).for_photos(5)
    assert at_once.steps == 0 and not at_once.rate_decay and isinstance(at_once, HyperNetworkSettings)


def test_other_methods_take_their_own_steps_whatever_the_photos() -> None:
    assert LoRA.Settings().for_photos(5) == LoRA.Settings()
