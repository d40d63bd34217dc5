"""LoRA, DreamBooth and DreamBooth with Textual Inversion: each is its formula, and what comes out draws what was learned."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import peft
import pytest
import torch
from tiny import LONGEST, TinyText, TinyUNet, tiny_photos
from torch import Tensor, nn
from torch.func import functional_call
from tuned import method_of, quick

from e4t_core.concept import Concept
from e4t_core.diffusion import draw_samples
from e4t_core.memory_plan import FAST, PLANS, MemoryPlan
from e4t_core.methods.dreambooth import DreamBooth
from e4t_core.methods.dreambooth_ti import DreamBoothTI
from e4t_core.methods.lora import ATTENTION, LAYERS, TRANSFORMERS, LoRA, LoRASettings
from e4t_core.methods.registered import SETTINGS, SIBLINGS, TITLES
from e4t_core.mix import mix
from e4t_core.photos import Photos
from e4t_core.prior import PriorSibling
from e4t_core.run import BaseModel
from e4t_core.sibling import Sibling
from e4t_core.training import train
from e4t_core.unet import WordError
from e4t_core.weight_changes import LowRank, full_differences

WEIGHTED = (LoRA, DreamBooth, DreamBoothTI)
SEED = 5


@functools.cache
def learn(kind: type[Sibling], photos: Photos | None = None, plan: MemoryPlan = FAST, **changes: Any) -> Concept:
    unet, settings = TinyUNet(), quick(kind, **changes)
    method = method_of(kind, unet, settings)
    return train(method, BaseModel(unet, TinyText()), photos or tiny_photos(), settings, SEED, plan=plan)


# The textbook, written out ------------------------------------------------------------------------------------------


class Naive:
    """DreamBooth's loss in float64, sample by sample, with the network's weights and the word as functions of what trains."""

    def __init__(self, photos: Photos, prior: Tensor | None, settings: Any) -> None:
        self.unet, self.text, self.photos, self.prior, self.settings = TinyUNet(), TinyText(), photos, prior, settings
        self.network = copy.deepcopy(self.unet.network).double()
        self.base = {name: value.detach() for name, value in self.network.named_parameters()}

    def context(self, template: str, rows: Tensor) -> Tensor:
        row = self.text._row(template).double()[None]
        room = torch.zeros(LONGEST - 1 - 2 * len(rows), self.text.width, dtype=torch.float64)
        return torch.tanh(torch.cat([row, rows, row + rows, room]) @ self.text._mix.double())

    def error(
        self, weights: Mapping[str, Tensor], clean: Tensor, noise: Tensor, t: int, context: Tensor, mask: Tensor | None
    ) -> Tensor:
        kept = self.unet.schedule.alphas_cumprod[t].double()
        z = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        said = _float64_network(self.network, weights, z[None], torch.tensor([t]), context[None])
        squared = (noise - said[0]) ** 2
        return squared.mean() if mask is None else (squared * mask / mask.mean()).mean()

    def loss(self, step: int, weights: Mapping[str, Tensor], rows: Tensor, templates: tuple[str, ...]) -> Tensor:
        batch, latents = self.settings.batch, self.photos.latents.double()
        indices = range(step * batch, (step + 1) * batch)
        common = {"latent_shape": latents.shape[1:], "batch": batch}
        drawn = draw_samples(SEED, indices, photos=len(latents), templates=len(templates), **common)
        total = torch.zeros((), dtype=torch.float64)
        for i in range(batch):
            photo, mask = int(drawn.photos[i]), None
            if self.photos.masks is not None:
                mask = self.photos.masks[photo, 0].double()
            context = self.context(templates[drawn.templates[i]], rows)
            total += self.error(
                weights, latents[photo], drawn.noise[i].double(), int(drawn.timesteps[i]), context, mask
            )
        if self.prior is not None:
            other = draw_samples(SEED, indices, photos=len(self.prior), stream="prior", **common)
            context = self.context("a photo of {}", self.text.word("face").double()[None])
            for i in range(batch):
                clean = self.prior[int(other.photos[i])].double()
                error = self.error(weights, clean, other.noise[i].double(), int(other.timesteps[i]), context, None)
                total += self.settings.prior_weight * error
        return total / batch


def _float64_network(
    network: nn.Module, weights: Mapping[str, Tensor], z: Tensor, t: Tensor, context: Tensor
) -> Tensor:
    # The tiny network makes its time embedding's input in the default type.
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return functional_call(network, dict(weights), (z, t.double(), context))
    finally:
        torch.set_default_dtype(before)


def naive_run(
    naive: Naive, parts: dict[str, Tensor], made: Callable[[], tuple[dict[str, Tensor], Tensor]], groups: list[Any]
) -> list[float]:
    settings = naive.settings
    optimizer = torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    losses = []
    templates = quick(LoRA).sentences()
    for step in range(settings.steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * settings.rate(step)
        weights, rows = made()
        loss = naive.loss(step, {**naive.base, **weights}, rows, templates)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def first_down(name: str, rank: int, inputs: int) -> Tensor:
    digest = hashlib.sha256(f"lora/{SEED}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return ((2 * torch.rand((rank, inputs), generator=generator) - 1) / inputs**0.5).double()


CASES = [
    pytest.param({}, id="plain"),
    pytest.param(
        {"photos": tiny_photos(3, masks=True), "prior_weight": 1.3, "rate_decay": True}, id="photos and masks"
    ),
    pytest.param({"prior_weight": 0.0, "micro_batch": 3, "weight_decay": 0.1}, id="no prior"),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", WEIGHTED, ids=lambda kind: kind.name)
def test_it_is_the_formula_written_out(kind: type[Sibling], case: dict[str, Any]) -> None:
    changes = {**case, "steps": 3}
    if kind is LoRA:
        changes |= {"rank": 3, "alpha": 4.5, "identifier": "ohwx"}
    if kind is DreamBoothTI:
        changes |= {"vectors": 2, "word_rate": 3e-2}
    photos = changes.pop("photos", tiny_photos())
    settings = quick(kind, **changes)
    concept = learn(kind, photos, **changes)

    method = method_of(kind, TinyUNet(), settings)
    naive = Naive(photos, method.prior if settings.prior_weight else None, settings)  # type: ignore[attr-defined]
    face = naive.text.word("face").double()
    if kind is LoRA:
        ups = {
            n: torch.zeros((len(w), 3), dtype=torch.float64, requires_grad=True)
            for n, w in naive.base.items()
            if ".attn" in n
        }
        downs = {n: first_down(n, 3, naive.base[n].shape[1]).requires_grad_() for n in ups}
        rows = torch.stack([naive.text.word("ohwx").double(), face])
        losses = naive_run(
            naive,
            {},
            lambda: ({n: naive.base[n] + 4.5 / 3 * ups[n] @ downs[n] for n in ups}, rows),
            [*ups.values(), *downs.values()],
        )
        wanted = {n: 4.5 / 3 * (ups[n] @ downs[n]).detach() for n in ups}
    else:
        weights = {name: value.clone().requires_grad_() for name, value in naive.base.items()}
        word = (
            face.expand(2, -1).clone().requires_grad_()
            if kind is DreamBoothTI
            else naive.text.word("sks").double()[None]
        )
        groups: list[Any] = [{"params": list(weights.values())}]
        if kind is DreamBoothTI:
            groups.append({"params": [word], "lr": 3e-2, "weight_decay": 0.0})
        losses = naive_run(naive, {}, lambda: (weights, torch.cat([word, face[None]])), groups)
        wanted = {name: (value - naive.base[name]).detach() for name, value in weights.items()}
        rows = torch.cat([word, face[None]])
    assert concept.losses == pytest.approx(losses, rel=1e-5)
    assert torch.allclose(concept.embedding, rows.detach().float(), atol=2e-5)
    found = full_differences(concept.weights)
    assert found.keys() == {name for name, value in wanted.items() if value.any()}
    size = max(float(value.abs().max()) for value in wanted.values())
    for name, stored in found.items():
        # Stored in half precision, 11 bits of the largest.
        assert torch.allclose(stored.value().double(), wanted[name], rtol=2e-3, atol=2e-3 * size), name


def test_the_gradients_of_thin_matrices_are_the_chain_rule_s() -> None:
    """With up not zero, a scale that is not 1, a matrix that is not square and a kernel."""
    run = LoRA("face").start(
        BaseModel(TinyUNet(), TinyText()), tiny_photos(), quick(LoRA, rank=3, alpha=2.0, prior_weight=0.0), 0, "S*"
    )
    for name in ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",):
        adapter, weight = run.adapters[name], run.weights()[name]
        with torch.no_grad():
            adapter.up.normal_(generator=torch.Generator().manual_seed(1))
        above = torch.randn(adapter.shape, generator=torch.Generator().manual_seed(2))
        made = weight.make()
        wanted = run.effective[name].double() + 2 / 3 * adapter.up.double() @ adapter.down.double()
        assert made.shape[0] != made.shape[1] and torch.allclose(made.double(), wanted, atol=1e-6)
        made.backward(above)
        assert torch.allclose(adapter.up.grad, 2 / 3 * above @ adapter.down.T, rtol=1e-5, atol=1e-6)
        assert torch.allclose(adapter.down.grad, 2 / 3 * adapter.up.T @ above, rtol=1e-5, atol=1e-6)


def test_lora_is_what_peft_computes_on_the_same_weights() -> None:
    """Forward, gradients, three steps of AdamW, and the weights merged."""
    rank, alpha, settings = 3, 6.0, quick(LoRA, steps=3, rank=3, alpha=6.0, prior_weight=0.0)
    concept = learn(LoRA, steps=3, rank=3, alpha=6.0, prior_weight=0.0)
    unet, text, photos = TinyUNet(), TinyText(), tiny_photos()
    network = copy.deepcopy(unet.network)
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=["to_q", "to_k", "to_v"], lora_dropout=0.0, bias="none"
    )
    adapted = peft.get_peft_model(network, config)
    parts = {name: module for name, module in adapted.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert {f"{name}.weight" for name in parts} == unet.attention_projections().keys()
    for name, part in parts.items():
        down = first_down(f"{name}.weight", rank, part.in_features).float()
        # peft draws from the same distribution.
        assert (
            part.lora_A["default"].weight.abs().max() <= part.in_features**-0.5
            and not part.lora_B["default"].weight.any()
        )
        part.lora_A["default"].weight.data.copy_(down)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=settings.learning_rate, eps=settings.eps, weight_decay=settings.weight_decay
    )
    templates, rows = LoRASettings().sentences(), torch.stack([text.word("sks"), text.word("face")])
    for step in range(3):
        indices = range(step * 8, step * 8 + 8)
        sample = draw_samples(SEED, indices, latent_shape=(4, 8, 8), batch=8, templates=len(templates))
        kept = unet.schedule.alphas_cumprod[sample.timesteps].view(-1, 1, 1, 1)
        latents = photos.latents[sample.photos]
        z = kept.sqrt() * latents + (1 - kept).sqrt() * sample.noise
        context = text.encode([templates[n] for n in sample.templates], rows.expand(8, -1, -1))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * settings.rate(step)
        loss = (sample.noise - adapted(z, sample.timesteps, context)).square().mean()
        assert float(loss) == pytest.approx(concept.losses[step], rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    own = {change.name: change for change in concept.weights}
    assert own.keys() == unet.attention_projections().keys()
    for name, part in parts.items():
        change = own[f"{name}.weight"]
        assert isinstance(change, LowRank) and change.rank == rank
        assert torch.allclose(change.down, part.lora_A["default"].weight, rtol=1e-4, atol=1e-6)
        assert torch.allclose(change.up, alpha / rank * part.lora_B["default"].weight, rtol=1e-4, atol=1e-6)
    merged = dict(adapted.merge_and_unload().named_parameters())
    for name, change in own.items():
        assert torch.allclose(unet.parameters()[name] + change.difference(), merged[name], atol=1e-6)


# What is adapted and learned ---------------------------------------------------------------------------------------


def test_lora_adapts_what_the_field_adapts() -> None:
    place = "down_blocks.0.attentions.1"
    block = f"{place}.transformer_blocks.0"
    attention = [f"{block}.attn{n}.{part}.weight" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")]
    around = [
        f"{place}.proj_in.weight",
        f"{place}.proj_out.weight",
        f"{block}.ff.net.0.proj.weight",
        f"{block}.ff.net.2.weight",
    ]
    never = [
        "conv_in.weight",
        "down_blocks.0.resnets.0.conv1.weight",
        f"{block}.attn1.to_out.0.bias",
        "time_embedding.linear_1.weight",
    ]
    found = {
        which: [name for name in (*attention, *around, *never) if rule.search(name)] for which, rule in LAYERS.items()
    }
    assert found == {ATTENTION: attention, TRANSFORMERS: [*attention, *around]}


def test_a_kernel_is_adapted_as_a_matrix_of_its_taps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYERS, TRANSFORMERS, re.compile(r"^mid_block\.weight$"))
    concept = learn(LoRA, layers=TRANSFORMERS, rank=2)
    (change,) = concept.weights
    assert isinstance(change, LowRank) and change.shape == (12, 12, 3, 3)
    assert change.up.shape == (12, 2) and change.down.shape == (2, 12 * 9)


@pytest.mark.parametrize("kind", WEIGHTED, ids=lambda kind: kind.name)
def test_the_trigger_stands_for_the_word_and_the_class_word(kind: type[Sibling]) -> None:
    concept, text = learn(kind), TinyText()
    assert concept.embedding.shape == (2, text.width) and torch.equal(concept.embedding[1], text.word("face"))
    learned = not torch.equal(concept.embedding[0], text.word("sks"))
    assert learned == (kind is DreamBoothTI)
    assert concept.start is not None and torch.equal(concept.start, text.word("face")) and concept.word == "face"


@pytest.mark.parametrize("kind", SIBLINGS, ids=lambda kind: kind.name)
def test_no_steps_change_nothing_of_the_base(kind: type[Sibling]) -> None:
    concept = learn(kind, steps=0)
    assert concept.losses == () and not full_differences(concept.weights)


@pytest.mark.parametrize("kind", SIBLINGS, ids=lambda kind: kind.name)
def test_a_memory_plan_changes_what_is_learned_by_rounding_only(kind: type[Sibling]) -> None:
    first = learn(kind)
    for plan in (PLANS["balanced"], PLANS["leanest"]):
        other = learn(kind, plan=plan)
        assert other.losses == pytest.approx(first.losses, rel=1e-4)
        assert torch.allclose(other.embedding, first.embedding, atol=1e-4)
        for one, two in zip(
            full_differences(first.weights).values(), full_differences(other.weights).values(), strict=True
        ):
            # Moments in bfloat16 have 8 bits.
            assert torch.allclose(one.value(), two.value(), rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("kind", SIBLINGS, ids=lambda kind: kind.name)
def test_equal_inputs_give_equal_concepts_and_every_input_counts(kind: type[Sibling]) -> None:
    first = learn(kind)
    again = learn.__wrapped__(kind)
    assert torch.equal(first.embedding, again.embedding) and first.fingerprint == again.fingerprint
    assert first.losses == again.losses
    changes: list[dict[str, Any]] = [{"photos": tiny_photos(seed=9)}, {"photos": tiny_photos(masks=True)}, {"steps": 1}]
    if issubclass(kind, PriorSibling):
        changes += [{"prior_weight": 0.1}, {"prior_pictures": 2}, {"prior_seed": 1}]
    assert len({first.fingerprint, *(learn(kind, **change).fingerprint for change in changes)}) == 1 + len(changes)


@pytest.mark.parametrize("kind", SIBLINGS, ids=lambda kind: kind.name)
def test_learning_lowers_the_loss(kind: type[Sibling]) -> None:
    """Of the very same samples, beside a run that hardly moves: other noise moves the loss by more than a word does."""
    changes: dict[str, Any] = {"steps": 30, **({"prior_weight": 0.0} if kind in WEIGHTED else {})}
    losses, still = (learn(kind, learning_rate=rate, **changes).losses for rate in (1e-2, 1e-12))
    assert sum(losses[-5:]) < sum(still[-5:])


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SIBLINGS, ids=lambda kind: kind.name)
def test_a_class_word_of_several_tokens_is_named(kind: type[Sibling]) -> None:
    with pytest.raises(WordError, match="'noses'"):
        train(kind("noses"), BaseModel(TinyUNet(), TinyText()), tiny_photos(), quick(kind, steps=0), 0)


@pytest.mark.parametrize("kind", [LoRA, DreamBooth], ids=lambda kind: kind.name)
def test_an_identifier_is_one_word_of_one_token(kind: type[Sibling]) -> None:
    with pytest.raises(WordError, match="'noses'"):
        learn(kind, identifier="noses")
    for bad in ("", "two words", "x" * 41, "{}", "a\nb"):
        with pytest.raises(ValueError, match="identifier"):
            quick(kind, identifier=bad)


# Mixes and lists -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WEIGHTED, ids=lambda kind: kind.name)
def test_two_concepts_of_a_method_are_mixed(kind: type[Sibling]) -> None:
    changes = {"rank": 1} if kind is LoRA else {}
    one, two = learn(kind, **changes), learn(kind, photos=tiny_photos(seed=9), **changes)
    mixed = mix([one, two], [1.0, 3.0], "M*")
    assert mixed.method == kind.name and mixed.trigger == "M*"
    assert torch.allclose(mixed.embedding, 0.25 * one.embedding + 0.75 * two.embedding, atol=1e-6)
    parts = [full_differences(concept.weights) for concept in (one, two)]
    for name, stored in full_differences(mixed.weights).items():
        wanted = 0.25 * parts[0][name].value() + 0.75 * parts[1][name].value()
        assert torch.allclose(stored.value(), wanted, rtol=2e-3, atol=1e-6)
    if kind is LoRA:
        assert all(isinstance(change, LowRank) and change.rank == 2 for change in mixed.weights), (
            "a mix of thin ones is thin"
        )


def test_every_method_has_a_name_a_title_and_settings_of_its_own() -> None:
    assert SETTINGS.keys() == TITLES.keys() and len(set(TITLES.values())) == len(TITLES) == 2 + len(SIBLINGS)
    for kind in SIBLINGS:
        assert SETTINGS[kind.name] is kind.Settings and dataclasses.is_dataclass(kind.Settings())
        assert kind("face").trained(kind.Settings(), TinyUNet()) is not None
