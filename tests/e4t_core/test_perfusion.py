"""Perfusion: the paper's formula written out in keys and values, the locked key, the closed gate, the running mean."""

import dataclasses

import pytest
import tiny
import torch
from naive_layers import naive_error
from tiny import TinyText, TinyUNet, tiny_photos
from torch import Tensor, nn

from e4t_core.attention_changes import GatedEdit, gated_edit
from e4t_core.concept import Concept
from e4t_core.diffusion import DiffusionSample, draw_samples
from e4t_core.methods.perfusion import DAMPING, Perfusion, PerfusionRun, PerfusionSettings
from e4t_core.photos import Photos
from e4t_core.run import BaseModel
from e4t_core.templates import NEUTRAL
from e4t_core.text_covariance import PASSES, captions, first_difference, text_covariance
from e4t_core.training import train

QUICK = PerfusionSettings(steps=3, batch=4, micro_batch=3)


def base() -> BaseModel:
    return BaseModel(TinyUNet(attentions=3), TinyText())


def covariance(width: int = 6) -> Tensor:
    drawn = torch.randn(width, 40, generator=torch.Generator().manual_seed(8)).double()
    return drawn @ drawn.T / 40


def learn(settings: PerfusionSettings = QUICK, given: BaseModel | None = None) -> Concept:
    return train(Perfusion("face", covariance=covariance()), given or base(), tiny_photos(2, masks=True), settings, 5)


def in_outputs(weight: Tensor, e: Tensor, edit: dict[str, Tensor], target: Tensor, beta: float, tau: float) -> Tensor:
    """The paper's formula, token by token: h = W e_perp + o* sigmoid((sim(i*, e) - beta) / tau)."""
    inverse, i = edit["inverse"], edit["encoding"]
    energy = i @ inverse @ i
    rows = []
    for token in e.reshape(-1, e.shape[-1]):
        sim = i @ inverse @ token
        perpendicular = token - i * sim / energy
        rows.append(weight @ perpendicular + target / (1 + torch.exp(-(sim / energy - beta) / tau)))
    return torch.stack(rows).reshape(*e.shape[:-1], -1)


@pytest.mark.parametrize("outputs", [4, 6, 11], ids=["narrower", "square", "wider"])
def test_the_edit_of_a_layer_s_input_is_the_paper_s_of_its_output(outputs: int) -> None:
    """Values and gradients, in float64, with a metric and a target that have no symmetry."""
    generator = torch.Generator().manual_seed(1)
    weight, i, x, e = (
        torch.randn(shape, generator=generator).double() for shape in ((outputs, 6), (6,), (6,), (2, 5, 6))
    )
    inverse = torch.linalg.inv(covariance())
    found, naive = ([one.clone().requires_grad_() for one in (e, x)] for _ in range(2))
    made = gated_edit(found[0], i, inverse @ i, found[1], 0.6, 0.2) @ weight.T
    edit = {"inverse": inverse, "encoding": i}
    wanted = in_outputs(weight, naive[0], edit, weight @ naive[1], 0.6, 0.2)
    assert torch.allclose(made, wanted, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(made.shape, generator=generator).double()
    for one in (made, wanted):
        (one * upstream).sum().backward()
    for ours, its in zip(found, naive, strict=True):
        assert torch.allclose(ours.grad, its.grad, rtol=1e-10, atol=1e-12) and its.grad.norm() > 0.1


def naive_losses(run: PerfusionRun, word: Tensor, values: Tensor, sample: DiffusionSample) -> Tensor:
    unet, text, photos = run.base.unet, run.base.text, run.photos
    assert isinstance(unet, TinyUNet) and photos.masks is not None
    known = covariance()
    inverse = torch.linalg.inv(known + DAMPING * known.diagonal().mean() * torch.eye(6).double())
    edit = {"inverse": inverse, "encoding": run.encoding}
    gate = run.settings.bias, run.settings.temperature
    losses = []
    for row, template in enumerate(sample.templates):
        e = text.encode([NEUTRAL[template]], word)

        def read(layer: int, attention: nn.Module, e: Tensor = e) -> tuple[Tensor, Tensor]:
            key, value = attention.to_k.weight, attention.to_v.weight
            return (
                in_outputs(key, e, edit, key @ run.key, *gate),
                in_outputs(value, e, edit, value @ values[layer], *gate),
            )

        photo, t = sample.photos[row], sample.timesteps[row]
        losses.append(naive_error(unet, photos.latents[photo], photos.masks[photo], sample.noise[row], t, read))
    return torch.stack(losses)


def test_losses_and_gradients_are_those_of_the_written_out_method() -> None:
    given, photos = base(), tiny_photos(2, masks=True)
    run = Perfusion("face", covariance=covariance()).start(given, photos, QUICK, 1, "S*")
    run.prepare(lambda: None)
    given.unet.network.double()
    given.text._mix = given.text._mix.double()
    run.photos = Photos(photos.latents.double(), None, photos.masks.double())
    generator = torch.Generator().manual_seed(2)
    run.embedding.data = run.embedding.detach().double() + 0.1 * torch.randn(1, 6, generator=generator).double()
    run.values.data = torch.randn(3, 6, generator=generator).double()
    run.key = run.key.double() + 0.3 * torch.randn(6, generator=generator).double()
    run._follow(run.encoding.double())
    sample = draw_samples(1, range(5), latent_shape=(4, 8, 8), batch=5, photos=2, templates=len(NEUTRAL))
    sample = dataclasses.replace(sample, noise=sample.noise.double())
    weights = torch.rand(5, generator=generator).double()
    with given.unet.using({}):
        found = run.losses(sample)
        (found * weights).sum().backward()
    word, values = (one.detach().clone().requires_grad_() for one in (run.embedding, run.values))
    wanted = naive_losses(run, word, values, sample)
    (wanted * weights).sum().backward()
    # The schedule and the loss itself are float32.
    assert torch.allclose(found.double(), wanted, rtol=2e-6, atol=0)
    for ours, its in ((run.embedding, word), (run.values, values)):
        assert torch.allclose(ours.grad, its.grad, rtol=1e-5, atol=1e-8) and its.grad.norm() > 1e-4


def edit_of(concept: Concept) -> GatedEdit:
    assert isinstance(concept.attention, GatedEdit)
    return concept.attention


def test_the_word_s_key_is_the_class_word_s_bit_for_bit() -> None:
    """The target key always; what a layer really reads, where the gate is all open."""
    given = base()
    change = edit_of(learn(given=given))
    weight = given.unet.parameters()["down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight"]
    # Of several templates, the class word's encoding is their mean; the tiny encoder's is the same in each.
    known = given.text.encode(NEUTRAL[:1], given.text.word("face")[None])[0, 1]
    assert torch.allclose(change.key, known, rtol=0, atol=1e-7)
    others = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(3))
    others[0, 2] = change.encoding
    sharp = dataclasses.replace(change, temperature=1e-3)
    keys, _ = sharp.edited(change.layers[1], others)
    assert torch.equal(keys[0, 2] @ weight.T, change.key @ weight.T)
    assert not torch.equal(change.encoding, change.key)


def test_a_closed_gate_predicts_what_stock_does_bit_for_bit() -> None:
    given = base()
    run = Perfusion("face", covariance=covariance()).start(given, tiny_photos(), QUICK, 1, "S*")
    run.prepare(lambda: None)
    run.values.data += 1.0
    z, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4)), torch.tensor([300])
    with given.unet.using({}), torch.no_grad():
        stock = given.unet.denoise(z, t, given.text.encode(NEUTRAL[:1], run.word()))
        assert not torch.equal(given.unet.denoise(z, t, run.context(z, t)), stock)
        run.settings = dataclasses.replace(run.settings, bias=1.0, temperature=0.001)
        run.encoding = run.encoding * 1e3  # nothing is like it
        assert torch.equal(given.unet.denoise(z, t, run.context(z, t)), stock)
    change = run.attention()
    context = torch.randn(2, 3, 6)
    assert all(part is context for part in change.edited(change.layers[0], context, 0.0))
    assert all(part is context for part in change.edited("another", context))


def test_the_encoding_is_followed_step_by_step_however_a_step_is_cut() -> None:
    """The mean of every step's encodings moves i* by a hundredth."""
    given, photos = base(), tiny_photos()
    found = []
    for cut in ([range(4), range(4, 8)], [range(1), range(1, 4), range(4, 7), range(7, 8)]):
        run = Perfusion("face", covariance=covariance()).start(given, photos, QUICK, 1, "S*")
        run.prepare(lambda: None)
        start = run.encoding.clone()
        word = {0: torch.full((1, 6), 0.5), 1: torch.full((1, 6), -1.0)}
        for indices in cut:
            run.embedding.data = word[indices[0] // 4]
            sample = draw_samples(1, indices, latent_shape=(4, 8, 8), batch=4, templates=len(NEUTRAL))
            with given.unet.using({}), torch.no_grad():
                run.losses(sample)
        change = run.attention()
        wanted = start
        for one in word.values():
            wanted = 0.99 * wanted + 0.01 * given.text.encode(NEUTRAL[:1], one)[0, 1]
        assert torch.allclose(change.encoding, wanted, rtol=0, atol=1e-6)
        known = covariance()
        damped = known + DAMPING * known.diagonal().mean() * torch.eye(6).double()
        assert torch.allclose((damped @ change.direction.double()).float(), change.encoding, rtol=0, atol=1e-5)
        found.append(change)
    assert torch.equal(found[0].encoding, found[1].encoding)


def test_it_learns_a_value_for_each_layer_and_leaves_the_base() -> None:
    given = base()
    before = {name: value.clone() for name, value in given.unet.parameters().items()}
    concept = learn(given=given)
    change = edit_of(concept)
    assert concept.method == "perfusion" and concept.weights == () and len(concept.losses) == 3
    moved = change.values - change.key
    assert moved.norm(dim=1).min() > 0 and not torch.equal(moved[0], moved[1])
    assert not torch.equal(concept.embedding, concept.start[None])
    assert (change.bias, change.temperature) == (0.7, 0.15)
    assert all(torch.equal(value, before[name]) for name, value in given.unet.parameters().items())
    assert torch.equal(edit_of(learn()).values, change.values)
    start = edit_of(learn(dataclasses.replace(QUICK, steps=0)))
    assert torch.equal(start.values, start.key.expand(3, -1)) and torch.equal(start.encoding, start.key)


@pytest.mark.parametrize("known", [(), ("bird", "lamp", "face", "cup")])
def test_the_covariance_is_the_mean_over_the_captions_tokens(monkeypatch, known: tuple[str, ...]) -> None:
    """Each sentence with two words that the text encoder knows, taken in turn; else with the class word and its opposite."""
    text, passes = TinyText(), []
    monkeypatch.setattr(tiny, "ONE_TOKEN", {"face", *known})
    found = text_covariance(text, "face", lambda: passes.append(1))
    rows = [text.word(word) for word in known] or [text.word("face"), -text.word("face")]
    taken = [(one, rows[(number + shift) % len(rows)]) for number, one in enumerate(captions()) for shift in (0, 1)]
    tokens = [text.encode([one], word[None])[0, 1].double() for one, word in taken]
    wanted = sum(torch.outer(token, token) for token in tokens) / len(tokens)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12) and len(passes) == PASSES
    concept = train(Perfusion("face"), base(), tiny_photos(2, masks=True), QUICK, 5)
    told = train(Perfusion("face", covariance=found), base(), tiny_photos(2, masks=True), QUICK, 5)
    assert concept.fingerprint == told.fingerprint


def test_a_text_encoder_that_reads_no_words_is_said() -> None:
    one = torch.randn(3, 6)
    assert first_difference(one, one + torch.tensor([[0.0], [0.0], [1.0]])) == 2
    with pytest.raises(ValueError, match="gives the same for two words"):
        first_difference(one, one)
