import pytest
import torch
from tiny import CLIP_WIDTH, LAYERS, TinyText, TinyUNet, tiny_domain

from e4t_core.diffusion import DiffusionSample, draw_samples, inner_masks, mask_weights
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.methods.e4t.word_model import LossParts, WordModel


def draw(indices: range, seed: int = 1, **changes: object) -> DiffusionSample:
    options: dict[str, object] = {"latent_shape": (4, 2, 2), "batch": 16, "photos": 3, "templates": 8}
    return draw_samples(seed, indices, **(options | changes))  # type: ignore[arg-type]


def test_a_sample_is_the_same_whatever_it_is_drawn_together_with() -> None:
    whole = draw(range(32))
    for size in (1, 4, 5):
        for start in range(0, 32, size):
            part = draw(range(start, min(start + size, 32)))
            where = slice(start, min(start + size, 32))
            assert torch.equal(part.noise, whole.noise[where])
            assert torch.equal(part.timesteps, whole.timesteps[where])
            assert torch.equal(part.photos, whole.photos[where])
            assert part.templates == whole.templates[where]


def test_seed_index_and_stream_all_matter() -> None:
    sample = draw(range(2))
    assert not torch.equal(sample.noise[0], sample.noise[1])
    assert not torch.equal(sample.noise, draw(range(2), seed=2).noise)
    assert not torch.equal(sample.noise, draw(range(2), stream="other").noise)


def test_drawing_leaves_the_global_stream_alone_and_takes_any_seed() -> None:
    before = torch.random.get_rng_state()
    draw(range(4), seed=2**64 - 1)
    draw(range(4), seed=-1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_batch_covers_the_schedule() -> None:
    for step in range(3):
        timesteps = draw(range(step * 16, step * 16 + 16)).timesteps
        assert [int(t) * 16 // 1000 for t in timesteps] == list(range(16))


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_high_noise_is_learned_more_often_by_a_power_of_the_timestep(power: float) -> None:
    settings = TuningSettings(high_noise=power)
    timesteps = draw(range(1600), level=settings.level).timesteps
    for step in range(3):
        # The k-th sample lies where k to k + 1 of 16 parts of the density t ** power lie, whose integral is (t / T) ** (power + 1).
        parts = (timesteps[step * 16 : step * 16 + 16] / 1000) ** (power + 1) * 16
        assert all(k - 0.05 <= part <= k + 1 for k, part in enumerate(parts.tolist()))
    share = float((timesteps < 500).float().mean())
    assert share == pytest.approx(0.5 ** (power + 1), abs=0.02)
    plain = draw(range(32))
    assert torch.equal(draw(range(32), level=TuningSettings().level).timesteps, plain.timesteps)
    assert torch.equal(draw(range(32), level=settings.level).noise, plain.noise)


def test_photos_take_turns_and_large_sets_are_drawn_from() -> None:
    assert sorted(draw(range(16)).photos.bincount().tolist()) == [5, 5, 6]
    many = draw(range(64), photos=1000).photos
    assert many.unique().numel() > 50 and int(many.max()) < 1000 and int(many.max()) > 500


@pytest.mark.parametrize("photos", range(1, 17))
def test_every_photo_sees_every_part_of_the_schedule(photos: int) -> None:
    """Once in as many steps as there are photos; a photo that is seen at some noise levels only is half learned."""
    seen: dict[int, set[int]] = {photo: set() for photo in range(photos)}
    counts = [0] * photos
    for step in range(photos):
        sample = draw(range(step * 16, step * 16 + 16), photos=photos)
        for place, photo in enumerate(sample.photos.tolist()):
            seen[photo].add(place)
            counts[photo] += 1
        assert max(sample.photos.bincount(minlength=photos)) - min(sample.photos.bincount(minlength=photos)) <= 1
    assert all(strata == set(range(16)) for strata in seen.values()) and set(counts) == {16}


def test_all_templates_are_used() -> None:
    assert set(draw(range(200)).templates) == set(range(8))


TEMPLATES = ("a photo of {}", "a picture of {}")


def losses(unet: TinyUNet, **changes: object) -> LossParts:
    domain, generator = tiny_domain(unet), torch.Generator().manual_seed(0)
    given: dict[str, object] = {
        "latents": torch.randn(3, 4, 8, 8, generator=generator),
        "clip_features": torch.randn(3, LAYERS, CLIP_WIDTH, generator=generator),
        "noise": torch.randn(3, 4, 8, 8, generator=generator),
        "masks": None,
        "stop_feature_gradient": False,
    } | changes
    sample = DiffusionSample(torch.tensor([10, 400, 900]), given["noise"], (0, 1, 0), torch.zeros(3).long())
    words = WordModel.of(unet, TinyText(), given.get("encoder", domain.encoder), "face", 0.5, TEMPLATES)
    with unet.using(given.get("weights", {})):
        return words.losses(
            given["latents"], given["clip_features"], sample, given["masks"], given["stop_feature_gradient"]
        )


def test_the_loss_is_prediction_error_plus_the_mean_squared_length_of_the_offset() -> None:
    unet, text = TinyUNet(), TinyText()
    encoder = tiny_domain(unet).encoder
    encoder.final.weight.zero_()
    encoder.final.bias.copy_(torch.arange(6.0))
    latent, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([10, 400, 900])
    parts = losses(unet, encoder=encoder, latents=latent, noise=noise)
    # With a zeroed last layer E is its bias whatever the photo: 0² + 1² + … + 5² = 55.
    assert parts.offset.tolist() == pytest.approx([55.0] * 3)
    words = (text.word("face") + 0.5 * torch.arange(6.0)).expand(3, -1)
    context = text.encode(["a photo of {}", "a picture of {}", "a photo of {}"], words)
    predicted = unet.network(unet.schedule.add_noise(latent, noise, t), t, context)
    expected = (predicted - noise).square().mean(dim=(1, 2, 3))
    assert torch.allclose(parts.diffusion, expected, atol=1e-6)
    assert float(parts.total(0.1)) == pytest.approx(float(expected.mean()) + 5.5, rel=1e-6)


def test_a_limit_gives_a_sample_whose_penalty_is_too_large_a_smaller_lambda() -> None:
    diffusion = torch.tensor([2.0, 0.02, 0.0, 0.0], dtype=torch.float64)
    offset = torch.tensor([3.0, 4.0, 5.0, 0.0], dtype=torch.float64)
    leaves = [diffusion.requires_grad_(), offset.requires_grad_()]
    weight, limit = 0.1, 0.25
    # One by one, in words: the penalty counts as it is up to a quarter of the loss, and beyond that with the lambda that makes it so.
    smaller = [weight, min(weight, limit * 0.02 / 4.0), 0.0, weight]
    expected = sum(d + one * e for d, e, one in zip(diffusion.tolist(), offset.tolist(), smaller, strict=True))
    made = LossParts(*leaves).per_sample(weight, limit)
    assert made.detach().sum().item() == pytest.approx(expected, rel=1e-12) and made[1].item() == pytest.approx(0.025)
    by_loss, by_offset = torch.autograd.grad(made.sum(), leaves)
    # That lambda is a number: the limit asks nothing of the loss itself.
    assert by_loss.tolist() == [1.0] * 4 and by_offset.tolist() == pytest.approx(smaller, rel=1e-12)
    plain = LossParts(*leaves)
    assert torch.equal(plain.per_sample(weight, 0.0), plain.per_sample(weight))
    assert torch.equal(plain.per_sample(weight, 1e3)[:2], plain.per_sample(weight)[:2])


def test_a_v_prediction_base_has_the_v_target() -> None:
    latent = torch.randn(3, 4, 8, 8)
    epsilon, v = losses(TinyUNet(), latents=latent), losses(TinyUNet(prediction="v"), latents=latent)
    assert not torch.allclose(epsilon.diffusion, v.diffusion)


def test_the_feature_pass_sees_the_empty_prompt() -> None:
    unet = TinyUNet()
    losses(unet)
    assert unet.calls == ["features", "denoise"]
    assert torch.equal(unet.contexts[0], TinyText().empty().expand(3, -1, -1))


@pytest.mark.parametrize("stop", [False, True])
def test_gradients_flow_through_the_feature_pass_unless_stopped(stop: bool) -> None:
    unet = TinyUNet()
    weight = unet.parameters()["mid_block.weight"].clone().requires_grad_()
    parts = losses(unet, weights={"mid_block.weight": weight}, stop_feature_gradient=stop)
    # ‖E‖² depends on the weights through F alone.
    (grad,) = torch.autograd.grad(parts.offset.sum() + 0 * parts.diffusion.sum(), [weight])
    assert (grad.abs().max() == 0) == stop


def test_a_mask_selects_where_the_error_counts() -> None:
    unet = TinyUNet()
    half = torch.zeros(3, 1, 8, 8)
    half[..., :4] = 1
    left, right = losses(unet, masks=half).diffusion, losses(unet, masks=1 - half).diffusion
    # Two halves of equal area: their means average to the whole.
    assert torch.allclose((left + right) / 2, losses(unet).diffusion, atol=1e-6)
    assert not torch.allclose(left, right)


def test_mask_weights_have_mean_one_per_sample_at_any_size() -> None:
    masks = torch.zeros(3, 1, 64, 64)
    masks[0, :, 8:24, 8:24] = 1
    masks[1] = 0.3
    weights = mask_weights(masks, (8, 8))
    assert weights.shape == (3, 1, 8, 8)
    assert torch.allclose(weights.mean(dim=(1, 2, 3)), torch.ones(3), atol=1e-6)
    assert weights[0, 0, 2, 2] > 10 and weights[0, 0, 6, 6] == 0
    # A constant mask, and an all-zero one, weight nothing.
    assert torch.allclose(weights[1], torch.ones(1, 8, 8), atol=1e-5) and torch.equal(weights[2], torch.ones(1, 8, 8))


def test_inner_masks_count_a_cell_from_half_covered_on() -> None:
    masks = torch.zeros(1, 1, 32, 32)
    masks[..., :18] = 1  # cells of 4 columns: four whole ones, then one half covered
    inner = inner_masks(masks, (8, 8), 0.5)
    assert inner.shape == (1, 1, 8, 8)
    assert inner[..., :3].min() > 0.9999 and inner[..., 5:].max() == 0
    assert inner[..., 3].min() > 0.5 and inner[..., 4].max() < 0.2
    assert torch.allclose(mask_weights(inner_masks(masks, (8, 8), 0), (8, 8)), mask_weights(masks, (8, 8)), atol=1e-6)


@pytest.mark.parametrize("opacity", [1.0, 0.5, 0.05])
def test_inner_masks_do_not_depend_on_the_brushs_opacity(opacity: float) -> None:
    masks = torch.zeros(1, 1, 64, 64)
    masks[..., 16:48, 16:48] = 1
    assert torch.allclose(inner_masks(masks * opacity, (8, 8), 0.5), inner_masks(masks, (8, 8), 0.5), atol=1e-6)


def test_inner_masks_leave_something_of_a_subject_smaller_than_a_cell_and_nothing_of_none() -> None:
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, 0, 20:22, 20:22] = 1
    inner = inner_masks(masks, (8, 8), 0.5)
    assert inner[0, 0, 2, 2] > 0.9999 and torch.equal(inner[1], torch.zeros(1, 8, 8))
