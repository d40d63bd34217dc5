"""Extended Textual Inversion: the written-out method, and Textual Inversion where all layers read one word."""

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from naive_layers import naive_error
from tiny import TinyText, TinyUNet, tiny_photos
from torch import Tensor, nn

from e4t_core.attention_changes import LayerWords, mean_word
from e4t_core.concept import Concept
from e4t_core.diffusion import DiffusionSample, draw_samples
from e4t_core.layer_contexts import LayerContexts, cross_attentions
from e4t_core.methods.extended_textual_inversion import (
    ExtendedTextualInversion,
    ExtendedTextualInversionRun,
    ExtendedTextualInversionSettings,
)
from e4t_core.methods.textual_inversion import TextualInversion, TextualInversionSettings
from e4t_core.photos import Photos
from e4t_core.recomputed import recomputed
from e4t_core.run import BaseModel
from e4t_core.templates import NEUTRAL
from e4t_core.training import train

QUICK = ExtendedTextualInversionSettings(steps=3, batch=4, micro_batch=3)


def base(seed: int = 0) -> BaseModel:
    return BaseModel(TinyUNet(seed, attentions=3), TinyText())


def learn(settings: ExtendedTextualInversionSettings = QUICK, photos: Photos | None = None, seed: int = 5) -> Concept:
    photos = photos or tiny_photos(2, masks=True)
    return train(ExtendedTextualInversion("face"), base(), photos, settings, seed)


def naive_losses(run: ExtendedTextualInversionRun, words: Tensor, sample: DiffusionSample) -> Tensor:
    unet, text, photos = run.base.unet, run.base.text, run.photos
    assert isinstance(unet, TinyUNet) and photos.masks is not None
    losses = []
    for row, template in enumerate(sample.templates):
        contexts = [text.encode([NEUTRAL[template]], word[None]) for word in words]
        photo, t, noise = sample.photos[row], sample.timesteps[row], sample.noise[row]

        def read(layer: int, attention: nn.Module, contexts: list[Tensor] = contexts) -> tuple[Tensor, Tensor]:
            return contexts[layer] @ attention.to_k.weight.T, contexts[layer] @ attention.to_v.weight.T

        losses.append(naive_error(unet, photos.latents[photo], photos.masks[photo], noise, t, read))
    return torch.stack(losses)


@pytest.mark.parametrize("vectors", [1, 2])
def test_losses_and_gradients_are_those_of_the_written_out_method(vectors: int) -> None:
    """In float64, every layer's word another one, a template that comes twice among the samples."""
    given = base()
    given.unet.network.double()
    given.text._mix = given.text._mix.double()
    photos = tiny_photos(2, masks=True)
    settings = dataclasses.replace(QUICK, vectors=vectors)
    run = ExtendedTextualInversion("face").start(given, photos, settings, 1, "S*")
    run.photos = Photos(photos.latents.double(), None, photos.masks.double())
    drawn = torch.randn(3, vectors, 6, generator=torch.Generator().manual_seed(2)).double()
    run.embeddings.data = drawn.clone()
    sample = draw_samples(1, range(5), latent_shape=(4, 8, 8), batch=5, photos=2, templates=len(NEUTRAL))
    sample = dataclasses.replace(sample, noise=sample.noise.double(), templates=(2, 0, 2, 7, 1))
    weights = torch.rand(5, generator=torch.Generator().manual_seed(3)).double()
    with given.unet.using({}):
        found = run.losses(sample)
        (found * weights).sum().backward()
    words = drawn.clone().requires_grad_()
    wanted = naive_losses(run, words, sample)
    (wanted * weights).sum().backward()
    # The schedule and the loss itself are float32.
    assert torch.allclose(found.double(), wanted, rtol=2e-6, atol=0)
    assert run.embeddings.grad is not None and words.grad is not None
    assert torch.allclose(run.embeddings.grad, words.grad, rtol=1e-5, atol=1e-8)
    assert words.grad.flatten(1).norm(dim=1).min() > 1e-5


def test_layers_that_read_one_word_predict_what_textual_inversion_does_bit_for_bit() -> None:
    given, photos = base(), tiny_photos(2, masks=True)
    extended = ExtendedTextualInversion("face").start(given, photos, dataclasses.replace(QUICK, vectors=2), 1, "S*")
    single = TextualInversion("face").start(given, photos, TextualInversionSettings(vectors=2), 1, "S*")
    drawn = torch.randn(2, 6, generator=torch.Generator().manual_seed(2))
    extended.embeddings.data = drawn.expand(3, -1, -1).clone()
    single.embedding.data = drawn.clone()
    sample = draw_samples(1, range(4), latent_shape=(4, 8, 8), batch=4, photos=2, templates=len(NEUTRAL))
    # One template: a batch of another size may be multiplied in another order.
    sample = dataclasses.replace(sample, templates=(3, 4, 5, 6))
    with given.unet.using({}), torch.no_grad():
        assert torch.equal(extended.losses(sample), single.losses(sample))
        z, t = torch.randn(1, 4, 8, 8), torch.tensor([300])
        assert torch.equal(
            given.unet.denoise(z, t, extended.context(z, t)), given.unet.denoise(z, t, single.context(z, t))
        )


def test_training_moves_every_layer_s_word_its_own_way_and_nothing_else() -> None:
    given = base()
    before = {name: value.clone() for name, value in given.unet.parameters().items()}
    concept = train(ExtendedTextualInversion("face"), given, tiny_photos(), QUICK, 5, "<toy>")
    assert concept.method == "extended_textual_inversion" and concept.weights == () and len(concept.losses) == 3
    change = concept.attention
    assert isinstance(change, LayerWords)
    assert change.layers == tuple(f"down_blocks.0.attentions.{n}.transformer_blocks.0.attn2" for n in range(3))
    assert change.embeddings.shape == (3, 1, 6)
    moved = change.embeddings - given.text.word("face")
    assert moved.flatten(1).norm(dim=1).min() > 0
    assert not torch.equal(moved[0], moved[1]) and not torch.equal(moved[1], moved[2])
    assert torch.equal(concept.embedding, change.embeddings.double().mean(dim=0).float())
    assert all(torch.equal(value, before[name]) for name, value in given.unet.parameters().items())
    assert (
        given.unet.depth == 0
        and not given.unet.network.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k._forward_pre_hooks
    )


def test_no_steps_leave_the_coarse_word_and_micro_batches_give_nearly_the_same() -> None:
    start = learn(dataclasses.replace(QUICK, steps=0))
    assert start.attention is not None and torch.equal(start.embedding[0], TinyText().word("face"))
    whole = learn(dataclasses.replace(QUICK, micro_batch=0))
    again = learn(dataclasses.replace(QUICK, micro_batch=1))
    assert whole.attention is not None and again.attention is not None
    assert torch.allclose(whole.attention.embeddings, again.attention.embeddings, rtol=0, atol=1e-4)
    assert learn().fingerprint == learn().fingerprint != learn(seed=6).fingerprint


def test_the_mean_of_equal_words_is_that_word_bit_for_bit() -> None:
    word = torch.randn(2, 768, generator=torch.Generator().manual_seed(4))
    assert torch.equal(mean_word(word.expand(16, -1, -1)), word)
    assert torch.equal(mean_word(word.expand(7, -1, -1)), word)


def test_recomputed_gives_values_and_gradients_and_keeps_nothing_in_between() -> None:
    calls = []

    def function(x: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return (x.square() * torch.tensor([1.0, 3.0])).sum(dim=1)

    x = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], requires_grad=True)
    made = recomputed(function, x)
    assert torch.equal(made, torch.tensor([13.0, 9.75])) and calls == [False]
    (made * torch.tensor([1.0, -2.0])).sum().backward()
    assert torch.equal(x.grad, torch.tensor([[2.0, 12.0], [12.0, -6.0]])) and calls == [False, True]
    with torch.no_grad():
        assert not recomputed(function, x).requires_grad


class TestLayerContexts:
    def contexts(self, unet: TinyUNet, **changes: Mapping[str, Tensor]) -> LayerContexts:
        generator = torch.Generator().manual_seed(1)
        plain = torch.randn(2, 3, 6, generator=generator)
        names = cross_attentions(unet.attention_projections())
        keys, values = ({name: torch.randn(2, 3, 6, generator=generator) for name in names} for _ in range(2))
        return dataclasses.replace(LayerContexts(plain, keys, values), **changes)

    def test_a_layer_that_is_not_named_reads_the_plain_context(self) -> None:
        unet, z, t = TinyUNet(attentions=2), torch.randn(2, 4, 8, 8), torch.tensor([3, 800])
        context = self.contexts(unet)
        first = next(iter(context.keys))
        with unet.using({}):
            plain = unet.denoise(z, t, context.plain)
            assert torch.equal(unet.denoise(z, t, dataclasses.replace(context, keys={}, values={})), plain)
            same = dataclasses.replace(context, keys={first: context.plain}, values={})
            assert torch.equal(unet.denoise(z, t, same), plain)
            results = [
                unet.denoise(z, t, dataclasses.replace(context, **{kind: {name: context.keys[name]}, other: {}}))
                for kind, other in (("keys", "values"), ("values", "keys"))
                for name in context.keys
            ]
            # What was given for one call does not stay for the next.
            assert torch.equal(unet.denoise(z, t, context.plain), plain)
        for number, one in enumerate(results):
            assert all(not torch.equal(one, other) for other in [plain, *results[:number]])

    def test_an_unknown_layer_is_named(self) -> None:
        unet = TinyUNet()
        context = self.contexts(unet, keys={"up_blocks.7.attn2": torch.zeros(2, 3, 6)})
        with pytest.raises(KeyError, match="up_blocks.7"), unet.using({}):
            unet.denoise(torch.zeros(2, 4, 8, 8), torch.tensor([1, 2]), context)

    def test_a_context_in_several_places_is_changed_once(self) -> None:
        one = torch.randn(1, 3, 6)
        made = LayerContexts(one, {"a": one, "b": one}, {"a": one}).map(torch.clone)
        assert made.plain is made.keys["a"] is made.keys["b"] is made.values["a"] is not one
