"""How much of the tuned word a concept keeps: nothing else of it changes, and whole it is what it was before there was the setting."""

from __future__ import annotations

import dataclasses

import torch
from tiny import TinyText, TinyUNet, tiny_domain, tiny_photos
from torch import Tensor
from tuned import SMOOTH, differences, factors, identical, run

from e4t_core.memory_plan import FAST
from e4t_core.methods.e4t.method import E4T, E4TRun
from e4t_core.run import BaseModel
from e4t_core.word_strength import at_word_strength

WEAK = dataclasses.replace(SMOOTH, word_strength=0.25)


def word_of(settings, seed: int = 3) -> tuple[Tensor, Tensor]:
    """The refined word for some features of the UNet, and the fixed one."""
    concept = run(settings)
    assert concept.predictor is not None
    features = torch.randn(2, concept.predictor.feature_width, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return concept.predictor.word(features), concept.embedding


def test_the_words_lie_between_the_domain_s_word_and_what_was_learned() -> None:
    start = TinyText().word("face")
    for whole, weak in zip(word_of(SMOOTH), word_of(WEAK), strict=True):
        assert float((whole - start).abs().max()) > 1e-3
        assert torch.allclose(weak, start + 0.25 * (whole - start), rtol=0, atol=1e-6)


def test_what_is_learned_of_weights_and_encoder_is_the_same_bit_for_bit() -> None:
    whole, weak = run(), run(WEAK)
    for kept in (differences, lambda concept: concept.predictor.encoder.state_dict()):
        assert kept(whole).keys() == kept(weak).keys()
        assert all(torch.equal(kept(whole)[name], kept(weak)[name]) for name in kept(whole))
    assert all(
        torch.equal(a, b)
        for name in factors(whole)
        for a, b in zip(factors(whole)[name], factors(weak)[name], strict=True)
    )
    assert whole.losses == weak.losses
    assert whole.fingerprint != weak.fingerprint


def test_a_strength_when_it_is_applied_counts_on_top() -> None:
    weak = run(WEAK)
    back = at_word_strength(weak, 4.0)
    assert torch.allclose(back.embedding, run().embedding, rtol=0, atol=1e-5)


def test_whole_it_is_the_concept_of_before_there_was_the_setting() -> None:
    assert "word_strength" not in SMOOTH.learned_with() and "word_strength" in WEAK.learned_with()
    assert identical(run(), run(dataclasses.replace(SMOOTH, word_strength=1.0)))


def test_without_tuning_the_word_is_kept_whole() -> None:
    untuned = [run(dataclasses.replace(settings, steps=0)) for settings in (SMOOTH, WEAK)]
    assert identical(*untuned) and untuned[0].fingerprint == untuned[1].fingerprint


def test_a_preview_is_drawn_with_the_word_that_will_be_kept() -> None:
    def previewed(settings) -> Tensor:
        unet = TinyUNet()
        made: E4TRun = E4T(tiny_domain(unet)).start(
            BaseModel(unet, TinyText()), tiny_photos(1), settings, 5, "S*", FAST
        )
        z, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([500])
        with torch.no_grad(), unet.using({name: weight.make() for name, weight in made.weights().items()}):
            wanted = made.words.offset(z, t, made.clip_features[:1])
            word = made.words.domain_word_embedding + settings.kept_of_word * 0.5 * wanted
            assert torch.allclose(made.context(z, t), made.words.contexts([0], word), rtol=0, atol=1e-6)
            return made.context(z, t)

    assert not torch.allclose(previewed(SMOOTH), previewed(WEAK), rtol=0, atol=1e-4)
