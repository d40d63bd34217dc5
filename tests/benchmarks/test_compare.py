"""The comparison of all methods: its arithmetic, what it takes from runs, and a very small one from beginning to end."""

from __future__ import annotations

import csv
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import compare_grid
from benchmarks.compare import Late, draw, finished, report, result, several_arms
from benchmarks.compare_arms import OURS, SIBLINGS, TRIALS, Arm, Tried, all_arms, chosen, e4t_arm, read_log
from benchmarks.compare_learning import CountingUNet, Learned
from benchmarks.compare_pictures import Painter, photos_of
from benchmarks.compare_scores import identity_at_prompt, pareto_front, time_to
from benchmarks.narrow_drawing import context_of, dpm_solver_2m, draw_concept
from e4t_core.attention_changes import LayerWords
from e4t_core.layer_contexts import LayerContexts, cross_attentions
from e4t_core.photos import TuningError
from e4t_core.weight_changes import full_differences
from miniworld.domains import narrow_domain
from miniworld.presets import PRESETS

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_time_between_two_points_lies_on_a_straight_line_over_its_logarithm() -> None:
    curve = np.array([[0.2, 0.4, 0.8]])
    # Halfway up from 10 to 1000 seconds is 100.
    assert time_to(np.array([0.6]), [1, 10, 1000], curve)[0] == pytest.approx(100)


def test_what_is_there_at_the_first_point_takes_its_time_and_what_never_comes_is_infinite() -> None:
    curves = np.array([[0.2, 0.4], [0.2, 0.4], [0.5, 0.1]])
    found = time_to(np.array([0.1, 0.5, 0.4]), [3.0, 9.0], curves)
    assert found[0] == pytest.approx(3)
    assert math.isinf(found[1])
    assert found[2] == pytest.approx(3)


def test_a_curve_that_falls_again_has_reached_what_it_had() -> None:
    found = time_to(np.array([0.5]), [1, 100, 200], np.array([[0.0, 1.0, 0.2]]))
    assert found[0] == pytest.approx(10)


def test_identity_is_compared_where_prompts_are_obeyed_as_well() -> None:
    # From (1.0, 0.5) to (0.8, 0.9): where the prompt score is 0.9, identity is 0.7.
    prompts, identities = np.array([[1.0, 0.8]] * 3), np.array([[0.5, 0.9]] * 3)
    found = identity_at_prompt(np.array([0.9, 0.7, 1.1]), prompts, identities)
    assert found[0] == pytest.approx(0.7)
    assert found[1] == pytest.approx(0.9)
    assert math.isnan(found[2])


def test_only_what_nothing_beats_is_on_the_front() -> None:
    assert pareto_front([(0.9, 0.5), (0.8, 0.8), (0.8, 0.7), (0.7, 0.8), (0.5, 0.9), (0.9, 0.5)]) == [0, 1, 4, 5]


def test_the_sampler_is_exact_for_a_fixed_picture() -> None:
    clean, sigmas = torch.rand(2, 3), torch.tensor([10.0, 3.0, 1.0, 0.0])
    made = dpm_solver_2m(lambda _x, _n: clean, 10 * torch.randn(2, 3), sigmas)
    assert torch.allclose(made, clean, atol=1e-6)


def test_the_sampler_is_of_second_order() -> None:
    spread = 0.5  # pictures are normal with this deviation, so the best answer and the exact path are known
    errors = []
    for steps in (20, 40):
        sigmas = torch.linspace(math.log(10.0), math.log(0.1), steps + 1, dtype=torch.float64).exp()

        def clean_at(x: torch.Tensor, number: int, sigmas: torch.Tensor = sigmas) -> torch.Tensor:
            return x * spread**2 / (spread**2 + sigmas[number] ** 2)

        made = dpm_solver_2m(clean_at, torch.ones(1, dtype=torch.float64), sigmas)
        exact = math.sqrt((spread**2 + 0.1**2) / (spread**2 + 10.0**2))
        errors.append(abs(float(made) - exact))
    assert 3.0 < errors[0] / errors[1] < 5.5


def lines(*scores: tuple[float, int, float, float]) -> list[Tried]:
    return [Tried("lora", rate, steps, 4, named, prompt, 1.0) for rate, steps, named, prompt in scores]


def test_a_setting_is_good_only_if_the_person_and_the_prompts_are() -> None:
    tried = lines((1e-4, 60, 0.2, 1.0), (3e-4, 60, 0.7, 0.8), (1e-3, 60, 1.0, 0.3), (3e-3, 60, -0.1, 0.0))
    assert chosen(tried, "lora").rate == 3e-4
    assert tried[-1].score == 0.0
    with pytest.raises(ValueError, match="perfusion"):
        chosen(tried, "perfusion")


def test_of_equal_settings_the_shorter_is_chosen() -> None:
    assert chosen(lines((1e-4, 240, 0.7, 0.8), (3e-4, 60, 0.7, 0.8)), "lora").steps == 60


def test_the_best_short_run_goes_on_with_its_neighbors() -> None:
    rates = (1e-4, 3e-4, 1e-3)

    def on(*named: float) -> list[float]:
        return compare_grid.longer(lines(*((rate, 60, one, 1) for rate, one in zip(rates, named, strict=True))), rates)

    assert on(0.1, 0.2, 0.3) == [3e-4, 1e-3]
    assert on(0.1, 0.3, 0.2) == [1e-4, 3e-4, 1e-3]
    assert on(0.3, 0.2, 0.1) == [1e-4, 3e-4]


def test_siblings_learn_in_the_sentences_that_e4t_learns_in() -> None:
    templates = narrow_domain("faces").info.templates
    assert all(sibling.settings(1e-3).sentences() == tuple(templates) for sibling in SIBLINGS)


def test_the_log_comes_back_as_it_was_written(tmp_path: Path) -> None:
    tried = lines((1e-4, 60, 0.25, 1.0), (3e-4, 60, 0.7, 0.8125))
    compare_grid.write_log(tried, tmp_path / "log.csv")
    assert read_log(tmp_path / "log.csv") == tried


def test_every_method_is_tried_at_four_or_five_rates_and_the_committed_log_says_so() -> None:
    assert all(len(trial.rates) in (4, 5) for trial in TRIALS)
    log = read_log()
    for trial in TRIALS:
        own = [one for one in log if one.method == trial.method]
        assert not own or set(trial.rates) == {one.rate for one in own if one.steps == trial.runs[0]}


def test_what_the_log_has_chosen_is_what_is_compared() -> None:
    log = [Tried("e4t", 5e-5, 5, 4, 0.8, 0.9, 4.0), Tried("lora", 1e-3, 240, 4, 0.8, 0.9, 20.0)]
    ours, lora = (next(arm for arm in all_arms(["lora"], log) if arm.method == name) for name in ("e4t", "lora"))
    assert (ours.settings.learning_rate, ours.chosen) == (5e-5, 5)  # type: ignore[union-attr]
    assert (lora.settings.learning_rate, lora.chosen) == (1e-3, 240)  # type: ignore[union-attr]
    assert ours.chosen in ours.points
    assert lora.chosen in lora.points
    # Without a line, E4T is what ships.
    assert e4t_arm().settings == PRESETS["faces"]
    assert OURS.settings(PRESETS["faces"].learning_rate) == PRESETS["faces"]


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Painter:
    # A style, a background, and an accessory closer: every class of prompt is asked for.
    return Painter("validation", 2, (1, 3, 10), tmp_path_factory.mktemp("compare"))


def sibling(method: str, **changes: Any) -> Any:
    of = next(one for one in SIBLINGS if one.method == method)
    return replace(of.settings(of.rates[1]), **changes)


def tensors_of(learned: Learned) -> dict[str, torch.Tensor]:
    concept = learned.concept
    found = {name: stored.value() for name, stored in full_differences(concept.weights).items()}
    found["word"] = concept.embedding
    predictor: Any = concept.predictor
    found |= {} if predictor is None else dict(predictor.network.state_dict())
    parts = concept.attention.tensors() if concept.attention else ()
    return found | {f"attention {number}": part for number, part in enumerate(parts)}


@pytest.mark.parametrize("method", ["e4t", "perfusion", "dreambooth_ti"])
def test_a_concept_on_the_way_is_what_a_run_of_that_length_gives(painter: Painter, method: str) -> None:
    if method == "e4t":
        settings: Any = replace(e4t_arm().settings, batch=2)  # type: ignore[type-var]
    else:
        settings = sibling(method, batch=2, rate_decay=False)
        settings = replace(settings, prior_weight=0.0) if method == "dreambooth_ti" else settings
    person = painter.people[0]
    on_the_way, at_last = painter.learned(person, Arm("", method, settings, (2, 3), 3))[0]
    alone = painter.learned(person, Arm("", method, settings, (2,), 2))[0][-1]
    undisturbed = painter.learned(person, Arm("", method, settings, (3,), 3))[0][-1]
    for found, expected in ((on_the_way, alone), (at_last, undisturbed)):
        known = tensors_of(expected)
        assert all(torch.equal(value, known[name]) for name, value in tensors_of(found).items())
        assert len(known) == len(tensors_of(found))
    assert any(not torch.equal(value, tensors_of(at_last)[name]) for name, value in tensors_of(on_the_way).items())


def test_where_the_rate_falls_each_number_of_steps_is_a_run_of_its_own(painter: Painter) -> None:
    settings = sibling("textual_inversion", batch=1)
    assert settings.rate_decay
    first, second = painter.learned(painter.people[0], Arm("", "textual_inversion", settings, (2, 4), 4))[0]
    alone = painter.learned(painter.people[0], Arm("", "textual_inversion", settings, (2,), 2))[0][0]
    assert torch.equal(first.concept.embedding, alone.concept.embedding)
    assert first.passes < second.passes


def test_samples_are_counted_with_and_without_a_backward_pass(painter: Painter) -> None:
    unet = painter.base.unet
    assert isinstance(unet, CountingUNet)
    # 3 steps of 2 samples, and a look at 2 more at the end.
    made = painter.learned(
        painter.people[0], Arm("", "textual_inversion", sibling("textual_inversion", batch=2), (3,), 3)
    )
    assert made[0][0].passes == pytest.approx(3 * 2 + 2 / 3)
    before, z = unet.passes, torch.zeros(3, 4, 16, 16)
    with torch.no_grad(), unet.using({}):
        unet.features(z, torch.zeros(3), painter.base.text.empty().expand(3, -1, -1))
    assert 0.2 < unet.passes - before < 0.8


def test_one_run_is_not_dearer_for_being_looked_at(painter: Painter) -> None:
    settings = sibling("dreambooth", batch=1, prior_weight=0.0)
    person = painter.people[0]
    points = painter.learned(person, Arm("", "dreambooth", settings, (1, 2, 3, 4), 4))[0]
    assert [one.steps for one in points] == [1, 2, 3, 4]
    assert points[-1].passes == pytest.approx(4 + 1 / 3)


def test_equal_words_of_all_layers_are_one_word(painter: Painter) -> None:
    person, text = painter.people[0], painter.base.text
    concept = painter.learned(person, Arm("", "textual_inversion", sibling("textual_inversion", batch=1), (1,), 1))[0][
        0
    ].concept
    templates = [prompt.text for prompt in painter.prompts(person)]
    layers = cross_attentions(painter.base.unet.attention_projections())
    rows = concept.embedding.expand(len(layers), -1, -1)
    extended = replace(concept, attention=LayerWords(layers, rows))
    assert isinstance(context_of(extended, text, templates), LayerContexts)
    one, other = (draw_concept(painter.base, of, templates[:1], [1]) for of in (concept, extended))
    assert torch.equal(one, other)


def test_photos_of_one_person_are_different_scenes(painter: Painter) -> None:
    person = painter.people[0]
    photos = photos_of(person.identity, 5)
    assert photos.shape == (5, 3, 128, 128)
    assert torch.equal(photos[0], person.photo)
    assert all(not torch.equal(photos[0], other) for other in photos[1:])


def test_a_run_that_runs_away_has_the_same_concept_at_all_later_points(painter: Painter) -> None:
    settings = sibling("lora", learning_rate=1.0, batch=1, rate_decay=False)
    points = painter.learned(painter.people[0], Arm("", "lora", settings, (1, 20, 30), 30))[0]
    assert [one.steps for one in points] == [1, 20, 30]
    assert tensors_of(points[1]).keys() == tensors_of(points[2]).keys()
    assert all(torch.equal(value, tensors_of(points[2])[name]) for name, value in tensors_of(points[1]).items())


def test_what_cannot_be_learned_is_black(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_given: Any) -> Any:
        raise TuningError("The word embedding became NaN.")

    monkeypatch.setattr(painter, "learned", failing)
    drawn = painter.drawn(painter.people[0], Arm("", "lora", sibling("lora"), (5, 7), 7))
    assert set(drawn) == {5, 7}
    assert not drawn[5].pictures.any()
    assert math.isnan(drawn[5].seconds)


def test_a_very_small_comparison_from_the_grid_to_the_plot(
    painter: Painter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = replace(SIBLINGS[0], rates=(1e-3, 1e-2), fixed={"batch": 1}, runs=(1, 2))
    tried: dict[tuple[str, float, int], Tried] = {}
    assert not compare_grid.run(painter, [tiny], tried, time.monotonic() - 1)
    assert compare_grid.run(painter, [tiny], tried, math.inf)
    assert len(tried) == 4
    # What is kept needs no time.
    assert compare_grid.run(painter, [tiny], {}, time.monotonic() - 1)

    words, oracle, ours, untuned, inversion = all_arms(["textual_inversion"], list(tried.values()))
    dreambooth = Arm("DreamBooth", "dreambooth", sibling("dreambooth", batch=1, prior_pictures=4), (1, 2), 2)
    arms = [
        words,
        oracle,
        replace(ours, settings=replace(ours.settings, batch=2), points=(0, 1), chosen=1),  # type: ignore[type-var]
        replace(inversion, settings=tiny.settings(1e-2), points=(1, 2), chosen=2),
        dreambooth,
        untuned,
    ]
    with pytest.raises(Late):
        draw(painter, arms, painter.people, time.monotonic() - 1)
    assert not finished(painter, arms)
    draw(painter, arms, painter.people, math.inf)
    assert finished(painter, arms) == painter.people
    more = several_arms(arms[2:4], 3)
    draw(painter, more, painter.people[:1], math.inf)
    assert finished(painter, more) == painter.people[:1]
    draw(painter, [*arms, *more], painter.people[:1], time.monotonic() - 1)

    single, several = result(painter, arms, painter.people), result(painter, more, painter.people[:1])
    met = report(single, several, tmp_path, with_sizes=False)
    assert len(met) == 2 * (2 + 2)  # both judges: two siblings at equal prompts, two that must be slower
    printed = capsys.readouterr().out
    assert "Textual Inversion" in printed
    assert "Textual Inversion, 3 photos" in printed
    with (tmp_path / "points.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    one_photo = [row for row in rows if row["individuals"] == "2"]
    assert len(one_photo) == 3 * sum(len(arm.points) for arm in arms)
    assert float(next(r for r in one_photo if r["arm"] == "DreamBooth")["passes"]) > 0
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size[0] > 1000
    assert (tmp_path / "plot.png").stat().st_size < 100_000
    # The untuned encoder is E4T's first point.
    ours, untuned = arms[2], arms[-1]
    assert single.value("judge-a", untuned, "NAMED")[0] == single.value("judge-a", ours, "NAMED")[0]
    # The domain word is nobody, and says so by both judges.
    assert all(single.value(judge, words, "NAMED")[0] < 0.6 for judge in single.judges)
