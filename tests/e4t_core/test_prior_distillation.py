"""Prior distillation while E4T tunes: the formula, its gradients, and that it does nothing where it is off."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import TinyText, TinyUNet, tiny_domain, tiny_photos
from torch import Tensor
from tuned import SMOOTH, close, identical, run, tuned_weights

from e4t_core.memory_plan import FAST
from e4t_core.methods.e4t import prior as prior_module
from e4t_core.methods.e4t.method import E4T, E4TRun
from e4t_core.methods.e4t.prior import ASKING, ASKING_FROM, PLAIN
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.photos import Photos
from e4t_core.run import BaseModel, StepReport
from e4t_core.training import train

HELD = dataclasses.replace(SMOOTH, find_subject=False, prior=3.0, prior_samples=3)


def started(settings: TuningSettings, photos: int = 2) -> tuple[TinyUNet, E4TRun]:
    """A run that has asked the untuned domain."""
    unet = TinyUNet()
    made = E4T(tiny_domain(unet)).start(BaseModel(unet, TinyText()), tiny_photos(photos), settings, 5, "S*", FAST)
    with torch.no_grad(), unet.using({name: weight.make() for name, weight in made.weights().items()}):
        made.prepare(lambda: None)
    return unet, made


def samples(made: E4TRun, step: int, timesteps: int = 1000):
    from e4t_core.diffusion import draw_samples

    batch = made.settings.batch
    numbers = range(step * batch, (step + 1) * batch)
    return draw_samples(made.seed, numbers, latent_shape=(4, 8, 8), batch=batch, photos=len(made.photos), templates=8)


def test_what_is_learned_from_is_what_the_untuned_domain_predicts() -> None:
    unet, made = started(HELD)
    domain, text, photos = tiny_domain(unet), TinyText(), tiny_photos(2)
    weights = {**unet.parameters(), **domain.offsets.apply_all(unet.parameters())}
    assert made.prior is not None and len(made.prior._lessons) == 2 * 3
    kinds = set()
    for lesson in made.prior._lessons:
        asks = lesson.prompt >= len(PLAIN)
        kinds.add(asks)
        assert 0 <= lesson.t <= 999 and (not asks or lesson.t >= int(ASKING_FROM * 999))
        z, t = lesson.z[None], torch.tensor([lesson.t])
        with torch.no_grad(), unet.using(weights):
            word = text.word("face")[None]
            if asks:
                features = photos.clip_features[lesson.prompt % 2][None]
                word = word + 0.5 * domain.encoder(features, unet.features(z, t, text.empty()))
            wanted = unet.denoise(z, t, text.encode([(*PLAIN, *ASKING)[lesson.prompt]], word))[0]
        assert torch.allclose(lesson.prediction, wanted, rtol=0, atol=1e-5)
    assert kinds == {True, False}


@pytest.mark.parametrize("separate", [False, True])
def test_the_loss_and_its_gradients_are_the_naive_formula_s(separate: bool) -> None:
    """In float64, every part moved away from where it began."""
    unet, made = started(HELD)
    prior = made.prior
    assert prior is not None
    text, generator = made.base.text, torch.Generator().manual_seed(4)
    unet.network.double()
    text._mix = text._mix.double()
    made.words.encoder.double()
    prior._words = dataclasses.replace(
        made.words,
        domain_word_embedding=made.words.domain_word_embedding.double(),
        empty=made.words.empty.double(),
    )
    prior._clip_features = made.clip_features.double()
    lessons = [dataclasses.replace(one, z=one.z.double(), prediction=one.prediction.double()) for one in prior._lessons]
    prior._lessons = lessons
    encoder = made.words.encoder
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator).double()
    weights = {
        name: (value + 0.05 * torch.randn(value.shape, generator=generator).double()).requires_grad_()
        for name, value in unet.parameters().items()
    }
    leaves = [*weights.values(), *encoder.parameters()]

    def gradients(loss: Tensor) -> list[Tensor]:
        for leaf in leaves:
            leaf.grad = None
        loss.backward()
        return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone() for leaf in leaves]

    for step in range(2):
        with unet.using(weights):
            found, rows = prior.losses(range(step * 8, step * 8 + 8), separate)
            # As the run adds it to the samples' losses, of which the loop takes the mean over the batch.
            ours = HELD.prior * found.sum() / 8
            value, moved = float(ours.detach()), gradients(ours)
        assert len(rows) == 3
        naive = torch.zeros((), dtype=torch.float64)
        with unet.using(weights):
            for lesson in lessons[step * 3 : step * 3 + 3]:
                z, t, word = lesson.z[None], torch.tensor([lesson.t]), text.word("face")[None].double()
                if lesson.prompt >= len(PLAIN):
                    seen = unet.features(z, t, prior._words.empty).detach()
                    word = word + 0.5 * encoder(prior._clip_features[lesson.prompt % 2][None], seen)
                context = text.encode([(*PLAIN, *ASKING)[lesson.prompt]], word)
                naive = naive + (unet.denoise(z, t, context)[0] - lesson.prediction).square().mean() / 3
            wanted = gradients(HELD.prior * naive)
        # The losses themselves are float32.
        assert value == pytest.approx(HELD.prior * float(naive.detach()), rel=2e-6)
        for mine, theirs in zip(moved, wanted, strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-7 * float(theirs.abs().max()) + 1e-12)
        assert any(float(gradient.abs().max()) > 0 for gradient in wanted[len(weights) :])


def test_off_it_changes_nothing_and_costs_nothing() -> None:
    passes, concepts = [], []
    for settings in (SMOOTH, dataclasses.replace(SMOOTH, prior_samples=8)):
        unet = TinyUNet()
        concepts.append(run(settings, unet))
        passes.append(unet.calls)
    assert identical(*concepts) and passes[0] == passes[1]
    # A key of what was learned before there was such a setting still opens it.
    assert concepts[0].fingerprint == concepts[1].fingerprint and "prior" not in SMOOTH.learned_with()
    on = run(dataclasses.replace(SMOOTH, prior=1.0))
    assert on.fingerprint != concepts[0].fingerprint and not identical(on, concepts[0])


def test_before_the_first_step_there_is_nothing_to_lose() -> None:
    assert run(HELD).losses[0] == pytest.approx(run(dataclasses.replace(HELD, prior=0.0)).losses[0], rel=1e-6)
    assert run(HELD).losses[1] > run(dataclasses.replace(HELD, prior=0.0)).losses[1]


def test_without_steps_the_domain_is_not_asked() -> None:
    unet = TinyUNet()
    run(dataclasses.replace(HELD, steps=0), unet)
    assert "denoise" not in unet.calls


@pytest.mark.parametrize("micro_batch", [8, 4, 3, 1])
def test_micro_batches_of_any_size_give_the_same_concept(micro_batch: int) -> None:
    reference = run(dataclasses.replace(HELD, micro_batch=2))
    other = run(dataclasses.replace(HELD, micro_batch=micro_batch))
    assert close(reference, other, atol=1e-6)
    assert other.losses == pytest.approx(reference.losses, rel=1e-5)


@pytest.mark.parametrize("each", [1, 3, 4, 8])
def test_every_step_has_as_many_lessons_each_once(each: int) -> None:
    unet, made = started(dataclasses.replace(HELD, prior_samples=each))
    assert made.prior is not None
    with torch.no_grad(), unet.using({}):
        for step in range(2):
            alone = [len(made.prior.losses([step * 8 + within])[1]) for within in range(8)]
            assert sum(alone) == each and max(alone) == 1
            # Every micro-batch has its share.
            assert abs(sum(alone[:4]) - sum(alone[4:])) <= 1
        assert made.prior.losses(range(16, 24))[1] == [], "after the last step there is nothing more to learn"


def test_it_holds_what_the_domain_word_draws() -> None:
    """The tuned network's prediction for the domain word stays nearer to the untuned domain's."""
    settings = dataclasses.replace(SMOOTH, steps=6, find_subject=False)
    text = TinyText()
    generator = torch.Generator().manual_seed(9)
    z, t = torch.randn(8, 4, 8, 8, generator=generator), torch.arange(60, 1000, 120)

    def moved(prior: float) -> float:
        unet = TinyUNet()
        domain = tiny_domain(unet)
        concept = run(dataclasses.replace(settings, prior=prior, prior_samples=8), unet)
        context = text.encode(["a photo of {}"] * 8, text.word("face").expand(8, -1))
        made = []
        for weights in (tuned_weights(unet, concept), domain.offsets.apply_all(unet.parameters())):
            with torch.no_grad(), unet.using(weights):
                made.append(unet.denoise(z, t, context))
        return float((made[0] - made[1]).square().mean())

    assert moved(30.0) < 0.5 * moved(0.0)


def test_progress_counts_its_passes_and_a_cancel_passes_through() -> None:
    reports: list[StepReport] = []
    unet = TinyUNet()
    arguments = E4T(tiny_domain(unet)), BaseModel(unet, TinyText()), tiny_photos(), HELD, 5
    train(*arguments, on_step=reports.append)
    assert [report.done for report in reports] == list(range(1, reports[0].total + 1))
    asked = [report for report in reports if report.phase == "subject"]
    pictures = len(PLAIN) + len(ASKING)
    assert len(asked) == prior_module.STEPS * pictures // 4 + -(-6 // 4)

    def cancel(report: StepReport) -> None:
        if report.done == 5:
            raise InterruptedError("cancelled")

    with pytest.raises(InterruptedError, match="cancelled"):
        train(*arguments, on_step=cancel)


def test_more_lessons_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prior_samples = 17 must be at most batch \(16\)"):
        TuningSettings(prior=1.0, prior_samples=17)
    assert TuningSettings(prior_samples=17).prior == 0


def test_a_plan_counts_the_second_pass() -> None:
    unet = TinyUNet()
    method = E4T(tiny_domain(unet))
    assert method.trained(HELD, unet).passes == 2 and method.trained(SMOOTH, unet).passes == 1


def test_a_mask_is_the_photo_s_alone() -> None:
    """What the untuned domain predicts counts everywhere: also where the photo's mask is black."""
    masks = torch.zeros(1, 1, 8, 8)
    masks[..., :4] = 1
    photos = tiny_photos()
    unet = TinyUNet()
    made = E4T(tiny_domain(unet)).start(
        BaseModel(unet, TinyText()), Photos(photos.latents, photos.clip_features, masks), HELD, 5, "S*", FAST
    )
    with torch.no_grad(), unet.using({name: weight.make() + 0.1 for name, weight in made.weights().items()}):
        made.prepare(lambda: None)
        assert made.prior is not None
    with torch.no_grad(), unet.using({name: weight.make() for name, weight in made.weights().items()}):
        sample = samples(made, 0)
        with_prior = made.losses(sample)
        lessons, rows = made.prior.losses(sample.numbers)
        made.prior = None
        assert torch.allclose(with_prior[rows] - made.losses(sample)[rows], HELD.prior * lessons, rtol=1e-4, atol=1e-6)


def test_a_domain_stays_the_same_where_its_preset_has_it_off() -> None:
    """Concepts that name their domain by its fingerprint go on finding it."""
    unet = TinyUNet()
    known = tiny_domain(unet).fingerprint
    assert tiny_domain(unet, preset=TuningSettings(prior_samples=9)).fingerprint == known
    assert tiny_domain(unet, preset=TuningSettings(prior=1.0)).fingerprint != known
