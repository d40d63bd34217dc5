"""Arms of the benchmark of learning differ by what their names say, and take the steps that they should."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.compare_pictures import Painter
from benchmarks.learning import MEASURES, PLAIN, LowNoise, arms, difference, tables
from e4t_core.diffusion import draw_samples

pytestmark = pytest.mark.usefixtures("one_thread")

ARMS = arms()


@pytest.mark.parametrize("name", [name for name in ARMS if name != PLAIN])
def test_an_arm_differs_from_one_photo_by_what_its_name_says(name: str) -> None:
    arm, plain = ARMS[name], ARMS[PLAIN]
    own, other = asdict(arm.settings), asdict(plain.settings)  # type: ignore[call-overload]
    said = {
        "high_noise": "high noise" in name,
        "power": "low noise" in name,
        "rate_decay": "falling" in name,
        "more_steps": "photos" in name and "steps" not in name,
    }
    assert {key for key, value in own.items() if value != other.get(key)} == {
        key for key, is_said in said.items() if is_said
    }
    assert (arm.photos > 1) == ("photos" in name)
    assert (arm.chosen != plain.chosen) == any(steps in name for steps in ("30 steps", "45 steps"))


def test_low_noise_is_learned_more_often_than_high() -> None:
    low = ARMS["low noise, power 2"].settings
    assert isinstance(low, LowNoise)
    found = draw_samples(0, range(160), latent_shape=(1,), batch=16, level=low.level).timesteps
    # The square of a share is below a quarter for half of all.
    assert float((found < 250).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_several_photos_are_learned_in_their_steps_and_scored(tmp_path: Path) -> None:
    painter = Painter("validation", 1, range(2), tmp_path)
    quick = {
        name: replace(
            ARMS[name],
            points=(2,),
            chosen=2,
            settings=replace(ARMS[name].settings, batch=2, micro_batch=2),  # type: ignore[type-var]
        )
        for name in (PLAIN, "2 photos, steps of one", "2 photos")
    }
    (person,) = painter.people
    assert len({painter.path(person, arm) for arm in quick.values()}) == 3
    learned = {name: painter.learned(person, arm)[0][-1].concept for name, arm in quick.items()}
    assert [len(concept.losses) for concept in learned.values()] == [2, 2, 3]
    pictures = {name: [painter.drawn(person, arm)[2].pictures] for name, arm in quick.items()}
    scored = painter.scores(pictures, painter.people)
    lines = tables(scored, dict.fromkeys(quick, 1.0))
    assert len(lines) == 2 * len(scored) and all(measure in lines[0] for measure in MEASURES)
    judged, one = next(iter(scored.values())), np.ones((1, 1))
    apart = float(judged["2 photos"].likeness_mean(one)[0] - judged[PLAIN].likeness_mean(one)[0])
    assert apart != 0 and difference(judged, "2 photos", "likeness").value == pytest.approx(apart)
