"""The small copy of a concept that is tuned to predict what the concept predicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache

import pytest
import torch
from tiny import TinyText, TinyUNet, tiny_photos
from torch import Tensor
from tuned import SMOOTH, differences, run

from e4t_core.concept import Concept
from e4t_core.diffusion import draw_samples
from e4t_core.files.compact_body import CompactSettings, pack, unpack
from e4t_core.memory_plan import LEAN, MemoryPlan
from e4t_core.methods.compact_fit import PROMPTS, CompactFit, CompactFitSettings
from e4t_core.quantized import QuantizedRows
from e4t_core.run import BaseModel, StepReport
from e4t_core.training import train
from e4t_core.weight_changes import Full, LowRank, Scaled, shared_factors

SIZE = CompactSettings(rank=2, minor_rank=2, bits=3)
SETTINGS = CompactFitSettings(steps=12, batch=4, learning_rate=0.1)


@cache
def learned() -> Concept:
    """A concept whose differences are large enough to be told from rounding."""
    return run(dataclasses.replace(SMOOTH, steps=6, learning_rate=3e-2, train_unet=True))


def fit(concept: Concept, settings: CompactFitSettings = SETTINGS, plan: MemoryPlan | None = None) -> Concept:
    base = BaseModel(TinyUNet(), TinyText(), "base")
    return train(CompactFit(concept, SIZE), base, tiny_photos(), settings, 3, "S*", None, plan or MemoryPlan())


def weights_with(unet: TinyUNet, concept: Concept, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = dict(unet.parameters())
    for name, (p, q) in shared_factors(concept.weights).items():
        weights[name] = weights[name] * (1 + p @ q.T)
    return {name: weight + own.get(name, torch.zeros(())) for name, weight in weights.items()}


@torch.no_grad()
def predicted(
    concept: Concept, own: Mapping[str, Tensor], words_of: Concept, own_words: Mapping[str, Tensor]
) -> Tensor:
    """Noise predictions with some changes, the words as another's changes give them; by the formula, without the loop."""
    unet, text, photos = TinyUNet(), TinyText(), tiny_photos()
    sample = draw_samples(3, range(4), latent_shape=photos.latents.shape[1:], batch=4, photos=len(photos), templates=len(PROMPTS), timesteps=unet.schedule.timesteps)  # fmt: skip
    z = unet.schedule.add_noise(photos.latents[sample.photos], sample.noise, sample.timesteps)
    with unet.using(weights_with(unet, words_of, own_words)):
        words = words_of.predictor.word(unet.features(z, sample.timesteps, text.empty().expand(4, -1, -1)))
    with unet.using(weights_with(unet, concept, own)):
        return unet.denoise(z, sample.timesteps, text.encode([PROMPTS[n] for n in sample.templates], words))


def test_its_first_loss_is_the_formula() -> None:
    concept = learned()
    exact = differences(concept)
    start = {change.name: change.difference() for change in fit(concept, dataclasses.replace(SETTINGS, steps=0)).weights if not isinstance(change, Scaled)}  # fmt: skip
    teacher = predicted(concept, exact, concept, exact)
    error = (predicted(concept, start, concept, exact) - teacher).square().mean()
    moved = (predicted(concept, {}, concept, exact) - teacher).square().mean()
    one = fit(concept, dataclasses.replace(SETTINGS, steps=1))
    assert one.losses[0] == pytest.approx(float(error / moved), rel=1e-3)


def test_a_fitted_copy_predicts_more_like_the_concept_than_the_one_that_was_cut_down() -> None:
    concept = learned()
    exact, teacher = differences(concept), None
    teacher = predicted(concept, exact, concept, exact)

    def lost(small: Concept) -> float:
        return float((predicted(small, differences(small), concept, exact) - teacher).norm())

    cut = lost(fit(concept, dataclasses.replace(SETTINGS, steps=0)))
    assert lost(fit(concept, dataclasses.replace(SETTINGS, steps=40))) < 0.7 * cut


def test_what_is_not_weights_stays_the_concepts() -> None:
    concept = learned()
    small = fit(concept)
    assert small.embedding is concept.embedding and small.predictor is concept.predictor
    assert (small.fingerprint, small.trigger, small.settings) == (concept.fingerprint, "S*", concept.settings)
    one, other = shared_factors(concept.weights), shared_factors(small.weights)
    assert one.keys() == other.keys() and all(
        torch.equal(a, b) for n in one for a, b in zip(one[n], other[n], strict=True)
    )
    assert {type(change) for change in small.weights} == {Scaled, LowRank, Full}


def test_its_factors_are_of_few_bits_and_are_kept_as_they_are_however_often() -> None:
    small = fit(learned())
    for change in small.weights:
        if isinstance(change, LowRank):
            assert change.rank <= SIZE.rank
            for rows in (change.up.T, change.down):
                torch.testing.assert_close(QuantizedRows.of(rows, SIZE.bits).values(), rows, rtol=1e-5, atol=1e-9)
    kept: dict[str, Tensor | LowRank] = {change.name: change for change in small.weights if isinstance(change, LowRank)}
    for _ in range(2):
        body = unpack(*pack(kept, {}, SIZE))
        wanted, kept = kept, {change.name: change for change in body.weights if isinstance(change, LowRank)}
        assert kept.keys() == wanted.keys()
        for name, change in kept.items():
            one, other = wanted[name], change
            assert isinstance(one, LowRank) and isinstance(other, LowRank)
            # The codes are the same; a step is the least squares of numbers that were rounded once.
            torch.testing.assert_close(other.up, one.up, rtol=1e-5, atol=0)
            torch.testing.assert_close(other.down, one.down, rtol=1e-5, atol=0)


def test_equal_inputs_give_equal_factors_and_plans_differ_by_rounding() -> None:
    concept = learned()
    short = dataclasses.replace(SETTINGS, steps=2, eps=1e-2)
    one, again = differences(fit(concept, short)), differences(fit(concept, short))
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    lean = differences(fit(concept, short, dataclasses.replace(LEAN, micro_batch=1)))
    largest = max(
        float((value - lean[name]).abs().max() / value.abs().max()) for name, value in one.items() if value.any()
    )
    # A number on the edge between two levels may fall on the other side.
    assert largest < 0.7
    shares = [float((value - lean[name]).norm() / value.norm()) for name, value in one.items() if value.any()]
    assert sum(shares) / len(shares) < 0.05


def test_the_concept_is_not_changed() -> None:
    concept = learned()
    before = {name: value.clone() for name, value in differences(concept).items()}
    fit(concept)
    assert all(torch.equal(value, before[name]) for name, value in differences(concept).items())


def test_a_concept_without_weights_has_nothing_to_fit() -> None:
    concept = dataclasses.replace(learned(), weights=())
    with pytest.raises(ValueError, match="changes no weights that thin factors would make smaller"):
        fit(concept)


def test_a_micro_batch_changes_the_first_loss_by_rounding_only_and_every_pass_is_counted() -> None:
    concept = learned()
    one = dataclasses.replace(SETTINGS, steps=1)
    found = []
    for micro in (4, 1):
        reports: list[StepReport] = []
        base = BaseModel(TinyUNet(), TinyText(), "base")
        plan = dataclasses.replace(MemoryPlan(), micro_batch=micro)
        small = train(CompactFit(concept, SIZE), base, tiny_photos(), one, 3, "S*", reports.append, plan)
        assert reports[-1].done == reports[-1].total
        found.append(small.losses[0])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_preview_may_be_drawn_while_it_fits() -> None:
    drawn: list[Tensor] = []

    def look(report: StepReport) -> None:
        if report.draw is not None and report.phase == "tuning":
            drawn.append(report.draw())

    base = BaseModel(TinyUNet(), TinyText(), "base")
    train(CompactFit(learned(), SIZE), base, tiny_photos(), dataclasses.replace(SETTINGS, steps=1), 3, "S*", look)
    assert drawn and all(torch.isfinite(picture).all() for picture in drawn)
