import dataclasses

import pytest
import torch
from tiny import TinyText, TinyUNet, tiny_domain, tiny_info, tiny_photos
from torch import Tensor
from tuned import SMOOTH, close, differences, draws_with, factors, identical, run, tensors_of, tune, tuned_weights

from e4t_core.diffusion import draw_samples
from e4t_core.methods.e4t.concept_encoder import ConceptEncoder
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.methods.e4t.weight_offsets import WeightOffsets
from e4t_core.photos import Photos
from e4t_core.run import StepReport
from e4t_core.templates import NEUTRAL
from e4t_core.weight_changes import full_differences


def test_a_written_out_training_loop_gives_the_same_concept() -> None:
    """The reference: whole batches, the paper's naive four-layer offsets, ordinary trainable weights."""
    unet, text, photos = TinyUNet(), TinyText(), tiny_photos(2, masks=True)
    domain = tiny_domain(unet)
    # As many steps as for one photo.
    concept = tune(unet, text, domain, photos, dataclasses.replace(SMOOTH, more_steps=0.0), 7)

    encoder, offsets = tiny_domain(unet).encoder, tiny_domain(unet).offsets
    weights = {name: value.clone().requires_grad_() for name, value in unet.parameters().items()}
    encoder.requires_grad_(True)
    offsets.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [*weights.values(), *offsets.parameters(), *encoder.parameters()], lr=1e-2, eps=1e-2, weight_decay=0.01
    )

    def effective() -> dict[str, Tensor]:
        result: dict[str, Tensor] = dict(weights)
        for name in offsets.names:
            layers = offsets.get_submodule(name.removesuffix(".weight"))
            delta = layers.row(layers.column(torch.outer(layers.y(layers.v0), layers.u(layers.v0))).T).T
            result[name] = weights[name] * (1 + delta)
        return result

    losses = []
    for step in range(2):
        shape, names = (4, 8, 8), NEUTRAL
        sample = draw_samples(
            7, range(step * 8, step * 8 + 8), latent_shape=shape, batch=8, photos=2, templates=len(names)
        )
        t = sample.timesteps
        kept = unet.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
        z = kept.sqrt() * photos.latents[sample.photos] + (1 - kept).sqrt() * sample.noise
        with unet.using(effective()):
            offset = encoder(photos.clip_features[sample.photos], unet.features(z, t, text.empty().repeat(8, 1, 1)))
            prompts = [names[number] for number in sample.templates]
            error = unet.denoise(z, t, text.encode(prompts, text.word("face") + 0.5 * offset)) - sample.noise
            assert photos.masks is not None
            mask = photos.masks[sample.photos]
            weighted = error.square() * mask / mask.mean(dim=(1, 2, 3), keepdim=True)
            loss = weighted.mean() + SMOOTH.regularization * offset.square().sum(dim=1).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))

    # float32 sums in another order, through two steps: a few units in the sixth digit.
    assert concept.losses == pytest.approx(losses, rel=1e-5)
    ours = tuned_weights(unet, concept)
    assert draws_with(concept, ours, effective(), atol=2e-6)
    for name, value in effective().items():
        assert not torch.equal(value, unet.parameters()[name]), name
    for key, value in encoder.state_dict().items():
        assert torch.allclose(concept.predictor.encoder.state_dict()[key], value, rtol=0, atol=2e-6), key


def test_zero_steps_are_the_encoders_first_answer_on_base_plus_domain_offset() -> None:
    unet, text, photos = TinyUNet(), TinyText(), tiny_photos()
    domain = tiny_domain(unet)
    concept = tune(unet, text, domain, photos, TuningSettings(steps=0), 3)
    assert differences(concept) == {} and concept.losses == ()
    assert (concept.predictor.encoder.final.weight == domain.encoder.final.weight).all()
    assert unet.calls.count("denoise") == 0
    for name, (p, q) in factors(concept).items():
        expected = domain.offsets.factors(name)
        assert torch.equal(p, expected[0]) and torch.equal(q, expected[1])


@pytest.mark.parametrize("steps", [0, 2])
def test_the_static_embedding_is_the_mean_word_over_noise_levels_with_the_tuned_weights(steps: int) -> None:
    unet, text, photos = TinyUNet(), TinyText(), tiny_photos(3)
    concept = tune(unet, text, tiny_domain(unet), photos, dataclasses.replace(SMOOTH, steps=steps), 3)
    sample = draw_samples(3, range(18), latent_shape=(4, 8, 8), batch=18, photos=3, stream="static")
    z = unet.schedule.add_noise(photos.latents[sample.photos], sample.noise, sample.timesteps)
    with unet.using(tuned_weights(unet, concept)):
        features = unet.features(z, sample.timesteps, text.empty().repeat(18, 1, 1))
    expected = concept.predictor.word(features).mean(dim=0)
    assert torch.allclose(concept.embedding[0], expected, atol=1e-5)
    assert torch.equal(concept.predictor.clip_features, photos.clip_features.mean(dim=0, keepdim=True))


def test_micro_batches_of_any_size_give_the_same_concept_up_to_accumulation_order() -> None:
    reference = run(dataclasses.replace(SMOOTH, batch=16, micro_batch=16))
    for micro_batch in (4, 1, 5):
        other = run(dataclasses.replace(SMOOTH, batch=16, micro_batch=micro_batch))
        # Smooth steps of 1e-2: float32 rounding of gradients moves a weight by about 1e-8 to 1e-7.
        assert close(reference, other, atol=1e-6)
        assert other.losses == pytest.approx(reference.losses, rel=1e-5)
    assert not close(reference, run(dataclasses.replace(SMOOTH, batch=15, micro_batch=15)), atol=1e-6)


def test_a_batch_below_the_micro_batch_is_computed_at_once() -> None:
    small = dataclasses.replace(SMOOTH, batch=3, micro_batch=3)
    assert identical(run(small), run(dataclasses.replace(small, micro_batch=8)))


def test_equal_inputs_and_seed_give_the_same_concept_bit_for_bit() -> None:
    one = run()
    torch.rand(3)
    other = run()
    assert identical(one, other) and one.fingerprint == other.fingerprint
    changed = [run(seed=2), run(unet=TinyUNet(seed=5)), run(photos=tiny_photos(seed=12))]
    assert len({one.fingerprint, *(concept.fingerprint for concept in changed)}) == 4
    assert not any(identical(one, concept) for concept in changed)


def test_the_word_does_not_change_what_is_learned() -> None:
    unet = TinyUNet()
    concepts = [
        tune(unet, TinyText(), tiny_domain(unet), tiny_photos(), SMOOTH, 1, trigger=word, base_fingerprint="known")
        for word in ("S*", "T*")
    ]
    assert concepts[0].fingerprint == concepts[1].fingerprint and identical(*concepts)
    assert [concept.trigger for concept in concepts] == ["S*", "T*"]
    assert concepts[0].base_fingerprint == "known"


def test_the_global_random_stream_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    run()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_it_works_inside_inference_mode_on_inference_tensors_with_the_same_result() -> None:
    normal = run(photos=tiny_photos(2, masks=True))
    for changes in ({}, {"train_unet": False}, {"train_offsets": False, "train_unet": False}):
        settings = dataclasses.replace(SMOOTH, **changes)
        with torch.inference_mode():
            unet = TinyUNet()
            domain, text, photos = tiny_domain(unet), TinyText(), tiny_photos(2, masks=True)
            assert unet.network.conv_in.weight.is_inference() and photos.latents.is_inference()
            concept = tune(unet, text, domain, photos, settings, 1)
            assert torch.is_inference_mode_enabled()
        if not changes:
            assert identical(normal, concept)
        assert not any(tensor.is_inference() for tensor in tensors_of(concept).values())
        assert concept.losses[0] == pytest.approx(normal.losses[0])


def test_tuning_learns_the_photo() -> None:
    concept = run(TuningSettings(steps=25, learning_rate=1e-2, batch=8, micro_batch=8))
    assert sum(concept.losses[-5:]) < 0.95 * sum(concept.losses[:5])


@pytest.mark.parametrize(
    "changes",
    [
        {"train_offsets": False, "train_unet": False},
        {"train_encoder": False, "train_unet": False},
        {"train_encoder": False, "train_offsets": False},
        {"train_encoder": False},
    ],
)
def test_only_what_is_switched_on_trains(changes: dict[str, bool]) -> None:
    unet = TinyUNet()
    settings = dataclasses.replace(SMOOTH, **changes)
    concept = run(settings, unet)
    first = tiny_domain(unet).encoder.state_dict()
    state = concept.predictor.encoder.state_dict()
    assert any(not torch.equal(state[key], first[key]) for key in first) == settings.train_encoder
    changed = differences(concept).keys()
    projections = unet.attention_projections().keys()
    if settings.train_unet:
        assert changed == unet.parameters().keys()
    else:
        assert changed == (projections if settings.train_offsets else set())


def test_the_encoder_has_its_share_of_the_rate() -> None:
    """Adam's first step moves a weight by its rate, whatever the gradient: so the share is what can be seen."""
    settings = TuningSettings(steps=1, learning_rate=1e-2, batch=4, micro_batch=4, weight_decay=0.0)
    unet = TinyUNet()
    first = tiny_domain(unet).encoder.state_dict()

    def moves(rate: float) -> tuple[float, float]:
        concept = run(dataclasses.replace(settings, encoder_rate=rate), unet)
        encoder = max(
            float((value - first[key]).abs().max()) for key, value in concept.predictor.encoder.state_dict().items()
        )
        return encoder, float(differences(concept)["conv_in.weight"].abs().max())

    assert moves(1.0) == pytest.approx((1e-2, 1e-2), rel=1e-2)
    assert moves(0.03) == pytest.approx((3e-4, 1e-2), rel=1e-2)


def test_what_a_mask_covers_by_less_than_the_threshold_is_not_learned() -> None:
    photos = tiny_photos()
    clear, faint, half = (torch.zeros(1, 1, 8, 8) for _ in range(3))
    for mask, edge in ((clear, 0.0), (faint, 0.5), (half, 0.75)):
        mask[..., :4], mask[..., 4] = 1, edge
    strict = dataclasses.replace(SMOOTH, mask_threshold=0.5)
    learned = [run(strict, photos=dataclasses.replace(photos, masks=mask)) for mask in (clear, faint, half)]
    assert identical(learned[0], learned[1]) and not identical(learned[0], learned[2])
    assert not close(run(photos=dataclasses.replace(photos, masks=faint)), learned[1], atol=1e-6)


def test_the_mask_counts_unless_switched_off() -> None:
    masked, plain = tiny_photos(masks=True), tiny_photos()
    off = dataclasses.replace(SMOOTH, use_mask=False)
    assert not identical(run(photos=masked), run(photos=plain))
    assert identical(run(off, photos=masked), run(off, photos=plain))


def test_the_feature_pass_has_gradients_unless_they_are_stopped() -> None:
    stopped = run(dataclasses.replace(SMOOTH, stop_feature_gradient=True))
    plain = run()
    assert stopped.losses[0] == pytest.approx(plain.losses[0], rel=1e-6), "the first step's loss is the same"
    assert not identical(stopped, plain)


def test_high_noise_is_learned_from_other_samples() -> None:
    high = dataclasses.replace(SMOOTH, high_noise=1.0)
    assert not identical(run(high), run()) and run(high).fingerprint != run().fingerprint
    assert "high_noise" in high.learned_with() and "high_noise" not in SMOOTH.learned_with()


def test_every_photo_counts() -> None:
    pair = tiny_photos(2)
    replaced = Photos(pair.latents.clone(), pair.clip_features)
    replaced.latents[1] += 1
    assert not identical(run(photos=pair), run(photos=replaced))


def test_the_context_is_open_over_forward_and_backward_of_every_micro_batch() -> None:
    unet = TinyUNet()
    run(unet=unet)
    assert unet.backward_depths == [1] * 4 and unet.depth == 0


def test_all_passes_of_the_features_see_the_empty_prompt() -> None:
    unet = TinyUNet()
    run(unet=unet)
    assert unet.contexts and all(torch.equal(c, TinyText().empty().expand_as(c)) for c in unet.contexts)


def test_every_micro_batch_is_reported() -> None:
    reports: list[StepReport] = []
    unet = TinyUNet()
    settings = dataclasses.replace(SMOOTH, micro_batch=3)
    concept = tune(unet, TinyText(), tiny_domain(unet), tiny_photos(), settings, 1, on_step=reports.append)
    assert [report.phase for report in reports] == ["subject"] * 2 + ["tuning"] * 6 + ["word"] * 6
    assert [report.micro for report in reports] == [1, 2, *(1, 2, 3) * 2, *range(1, 7)]
    assert [report.step for report in reports] == [0] * 2 + [1] * 3 + [2] * 9
    assert [report.done for report in reports] == list(range(1, 15))
    assert {(report.total, report.steps) for report in reports} == {(14, 2)}
    assert [len(report.losses) for report in reports[2:8]] == [0, 0, 1, 1, 1, 2]
    assert [report.masks is None for report in reports] == [True] * 2 + [False] * 12
    assert reports[-1].losses == concept.losses


def test_the_concept_shares_no_memory_with_what_was_given() -> None:
    unet = TinyUNet()
    domain, photos = tiny_domain(unet), tiny_photos()
    concept = tune(unet, TinyText(), domain, photos, SMOOTH, 1)
    given = {tensor.untyped_storage().data_ptr() for tensor in [*domain.encoder.state_dict().values()]}
    given |= {tensor.untyped_storage().data_ptr() for tensor in (photos.latents, photos.clip_features)}
    mine = [*tensors_of(concept).values(), *(t for pair in factors(concept).values() for t in pair)]
    mine += [stored.values for stored in full_differences(concept.weights).values()]
    assert not given & {tensor.untyped_storage().data_ptr() for tensor in mine}
    assert not any(tensor.requires_grad for tensor in mine) and not concept.predictor.encoder.training


def test_a_half_precision_base_is_tuned_in_float32() -> None:
    unet = TinyUNet()
    unet.network.half()
    concept = run(dataclasses.replace(SMOOTH, steps=1, learning_rate=1e-6), unet)
    # 1e-6 is below the last place of most half precision weights: masters in half precision would not move.
    changes = differences(concept)["conv_in.weight"]
    assert changes.dtype == torch.float32 and (changes != 0).float().mean() > 0.9


def test_a_domain_without_offsets_worth_is_the_base_itself() -> None:
    """Δ = 0 and 0 steps: the weights a host builds are the untouched base's, bit for bit."""
    unet = TinyUNet()
    domain = dataclasses.replace(tiny_domain(unet), offsets=WeightOffsets(unet.attention_projections()))
    concept = tune(unet, TinyText(), domain, tiny_photos(), TuningSettings(steps=0), 1)
    base = unet.parameters()
    assert all(torch.equal(weight, base[name]) for name, weight in tuned_weights(unet, concept).items())


def test_a_larger_offset_constant_survives_the_copy() -> None:
    unet = TinyUNet()
    info = tiny_info(unet, v_size=3)
    domain = Domain(ConceptEncoder(2, 5, 32, 6), WeightOffsets(info.projections, 3), info)
    assert differences(tune(unet, TinyText(), domain, tiny_photos(), SMOOTH, 1))


def test_a_loss_that_runs_away_is_told_and_the_last_good_step_is_kept() -> None:
    """The first two steps are sound; the third is thrown by a photo that changes under the run's feet."""
    good = run(dataclasses.replace(SMOOTH, steps=2, rate_decay=False))

    class Thrown(TinyUNet):
        def denoise(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
            lost = (
                self.calls.count("denoise") >= 4 + 4
            )  # two passes to find the subject times two, two steps of two micro-batches
            return super().denoise(z, t, context) * (1e3 if lost else 1.0)

    reports: list[StepReport] = []
    unet = Thrown()
    settings = dataclasses.replace(SMOOTH, steps=6)
    concept = tune(unet, TinyText(), tiny_domain(unet), tiny_photos(), settings, 1, on_step=reports.append)
    assert len(concept.losses) == 1 and concept.losses == good.losses[:1]
    assert "ran away in step 2 of 6" in concept.notes[0] and "the result of step 1 is kept" in concept.notes[0]
    assert "lower the learning rate (0.01)" in concept.notes[0]
    one = run(dataclasses.replace(SMOOTH, steps=1))
    # The step is taken back by AdamW's formula, up to rounding.
    for name, value in differences(one).items():
        assert torch.allclose(differences(concept)[name], value, atol=1e-6), name


def test_a_rate_that_destroys_everything_in_the_last_step_is_told() -> None:
    concept = run(dataclasses.replace(SMOOTH, steps=1, learning_rate=1.0, eps=1e-8))
    assert concept.losses == () and "nothing was learned" in concept.notes[0]
    untuned = run(dataclasses.replace(SMOOTH, steps=0, find_subject=False))
    assert torch.allclose(concept.embedding, untuned.embedding, atol=1e-3)


def test_an_ordinary_run_has_no_notes() -> None:
    assert run().notes == ()
