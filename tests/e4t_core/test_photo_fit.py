"""How well a domain's word explains a photo, on the tiny base: what is measured, and that nothing is changed by asking."""

import dataclasses
import math

import pytest
import torch
from tiny import TinyText, TinyUNet, tiny_domain, tiny_photos

from e4t_core.diffusion import draw_samples
from e4t_core.files.domain_file import load_domain, save_domain
from e4t_core.memory_plan import MemoryPlan
from e4t_core.methods.e4t.method import E4T
from e4t_core.methods.e4t.photo_fit import LEVELS, RANGE, least_usual, unusual
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.methods.e4t.word_model import WordModel
from e4t_core.trained_weight import made
from e4t_core.training import BaseModel


def by_hand(unet: TinyUNet, text: TinyText, domain, photos, photo: int) -> float:
    """The formula, level by level."""
    first, end = (round(share * 1000) for share in RANGE)
    templates = domain.info.templates
    shares = []
    for level in range(LEVELS):
        sample = draw_samples(
            0, [level], latent_shape=photos.latents.shape[1:], batch=LEVELS, templates=len(templates),
            timesteps=end - first, stream="photo fit",
        )  # fmt: skip
        t = sample.timesteps + first
        assert first + level * (end - first) // LEVELS - 1 <= int(t) < end
        z = unet.schedule.add_noise(photos.latents[photo : photo + 1], sample.noise, t)
        offsets, base = domain.offsets.fixed(photos.clip_features.mean(0, keepdim=True)), unet.parameters()
        with torch.no_grad(), unet.using({name: offsets.apply(name, base[name]) for name in domain.offsets.names}):
            words = WordModel.of(unet, text, domain.encoder, domain.info.word, domain.info.scale, templates)
            word = words.word(z, t, photos.clip_features[photo : photo + 1])
            contexts = text.encode([templates[sample.templates[0]]], word), text.empty()
            errors = [float((unet.denoise(z, t, context) - sample.noise).square().mean()) for context in contexts]
        shares.append(1 - errors[0] / errors[1])
    return sum(shares) / LEVELS


def gains_of(unet, text, domain, photos, micro_batch, on_pass=lambda: None):
    plan = MemoryPlan(micro_batch=micro_batch)
    run = E4T(domain).start(BaseModel(unet, text, "known"), photos, TuningSettings(), 0, "S*", plan)
    with torch.no_grad(), unet.using(made(run.weights())):
        return run.gains(on_pass)


def test_the_gain_is_what_its_formula_says_for_every_photo_and_micro_batch() -> None:
    unet, text = TinyUNet(), TinyText()
    domain, photos = tiny_domain(unet), tiny_photos(3)
    before = {name: value.clone() for name, value in unet.parameters().items()}
    passes: list[int] = []
    for micro_batch in (LEVELS, 5, 1):
        passes.clear()
        gains = gains_of(unet, text, domain, photos, micro_batch, lambda: passes.append(1))
        assert gains == pytest.approx([by_hand(unet, text, domain, photos, n) for n in range(3)], abs=1e-5)
        assert len(passes) == 3 * math.ceil(LEVELS / micro_batch)
    assert len(set(gains)) == 3
    assert unet.depth == 0 and all(torch.equal(value, before[name]) for name, value in unet.parameters().items())


def test_a_word_that_says_the_same_as_none_gains_nothing() -> None:
    unet, text = TinyUNet(), TinyText()
    text.encode = lambda templates, words: text.empty().expand(len(templates), -1, -1)  # type: ignore[method-assign]
    assert gains_of(unet, text, tiny_domain(unet), tiny_photos(1), 4) == (0.0,)


def test_only_photos_below_the_threshold_are_unusual_and_none_without_one() -> None:
    gains = (0.2, -0.1, 0.05, math.nan)
    assert unusual(gains, 0.05) == (1,)
    assert unusual(gains, None) == () and unusual((), 0.5) == ()


@pytest.mark.parametrize(("count", "below"), [(1, 0), (99, 0), (100, 1), (250, 2)])
def test_at_most_one_in_a_hundred_photos_is_called_unusual(count: int, below: int) -> None:
    gains = [0.0101 * (number + 1) - 0.5 for number in range(count)]
    threshold = least_usual(list(reversed(gains)))
    assert len(unusual(gains, threshold)) <= below and len(unusual(gains, threshold + 0.02)) > below


def test_what_is_usual_travels_in_the_domain_file_and_does_not_make_it_another_domain(tmp_path) -> None:
    domain = tiny_domain(TinyUNet())
    told = dataclasses.replace(domain, info=dataclasses.replace(domain.info, fit_threshold=-0.03))
    save_domain(tmp_path / "told.safetensors", told)
    save_domain(tmp_path / "silent.safetensors", domain)
    assert load_domain(tmp_path / "told.safetensors").info.fit_threshold == -0.03
    assert load_domain(tmp_path / "silent.safetensors").info.fit_threshold is None
    assert told.fingerprint == domain.fingerprint


@pytest.mark.parametrize("value", [1.5, math.nan, -math.inf, "0", True])
def test_a_threshold_that_no_gain_can_have_is_refused(value) -> None:
    with pytest.raises(ValueError, match="fit_threshold"):
        dataclasses.replace(tiny_domain(TinyUNet()).info, fit_threshold=value)
