"""Pictures by the mini world's networks in the width that they were trained in: ComfyUI's, at a quarter of the cost.

``host.draw`` draws with ComfyUI and the 320-channel base. That base predicts what the narrow one does but for its tie-break of
1e-2, and the sampler, its noise levels, the noise and the guidance here are the same, so pictures are nearly the same, too
(``compare --check-drawing`` says how nearly). Benchmarks that draw thousands of pictures of concepts which no ComfyUI has to
load use this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from e4t_core.attention_changes import GatedEdit, LayerWords
from e4t_core.concept import Concept
from e4t_core.layer_contexts import Context, LayerContexts
from e4t_core.noise_schedule import NoiseSchedule
from e4t_core.unet import TextEncoder
from e4t_core.weight_changes import TotalDifferences
from miniworld.pretraining import MiniBase
from miniworld.text_encoder import pad_tokens

from . import host
from .arms import SAMPLING


def bfloat16_products() -> AbstractContextManager[object]:
    """bfloat16 products on CPUs that have instructions for them, as the pack and ComfyUI compute there."""
    return torch.autocast("cpu", torch.bfloat16, enabled=host.multiplies_bfloat16(), cache_enabled=False)


def levels(schedule: NoiseSchedule, steps: int) -> tuple[list[int], Tensor]:
    """Timesteps and noise levels sigma ``(steps + 1,)`` of ComfyUI's scheduler "normal", the last of them 0."""
    times = torch.linspace(schedule.timesteps - 1, 0, steps).round().long()
    kept = schedule.alphas_cumprod.double()[times]
    return times.tolist(), torch.cat([((1 - kept) / kept).sqrt(), torch.zeros(1, dtype=torch.float64)])


def dpm_solver_2m(clean_at: Callable[[Tensor, int], Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2) for ``x = clean + sigma * noise``.

    Args:
        clean_at: what ``x`` would be without noise, as predicted at the level of this number.
        x: at the first level.
        sigmas: falling; 0 at the end.
    """
    before, last = None, 0.0
    for number in range(len(sigmas) - 1):
        clean = clean_at(x, number)
        now, after = float(sigmas[number]), float(sigmas[number + 1])
        share = after / now
        step = float(torch.log(sigmas[number] / sigmas[number + 1]))
        towards = clean
        if before is not None and after > 0:
            towards = clean + (clean - before) * (step / (2 * last))
        x = share * x + (1 - share) * towards
        before, last = clean, step
    return x


def context_of(concept: Concept, text: TextEncoder, templates: Sequence[str]) -> Context:
    """What the UNet reads of prompts, each with "{}" where the word stands, as a concept's fixed word has it."""

    def encoded(word: Tensor) -> Tensor:
        return text.encode(templates, word.expand(len(templates), -1, -1))

    plain, change = encoded(concept.embedding), concept.attention
    if isinstance(change, LayerWords):
        own = {layer: encoded(change.embeddings[number]) for number, layer in enumerate(change.layers)}
        return LayerContexts(plain, own, own)
    if isinstance(change, GatedEdit):
        edits = {layer: change.edited(layer, plain) for layer in change.layers}
        return LayerContexts(plain, *({layer: edit[part] for layer, edit in edits.items()} for part in (0, 1)))
    return plain


@torch.no_grad()
def draw_concept(base: MiniBase, concept: Concept, templates: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Pictures ``(B, 3, 128, 128)`` in [0, 1] of B prompts, each with "{}" where the concept's word stands.

    Args:
        base: what it was learned on.
        seeds: of the noise, one for each picture.
    """
    unet, text, predictor = base.unet, base.text, concept.predictor
    weights = unet.parameters()
    changes = TotalDifferences(concept.weights, weights)
    lent = {name: weights[name] + changes[name].value() for name in changes}
    fixed = context_of(concept, text, templates)
    empty = text.empty().expand(len(templates), -1, -1)

    def context(z: Tensor, t: Tensor) -> Context:
        if predictor is None or not concept.refines:
            return fixed
        return text.encode(templates, predictor.word(unet.features(z, t, empty).float()))

    with unet.using(lent):
        return _sampled(base, context, seeds)


@torch.no_grad()
def draw_prompts(base: MiniBase, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Pictures ``(B, 3, 128, 128)`` in [0, 1] of B plain prompts by the base alone."""
    context = base.text.network(pad_tokens(list(prompts)))
    with base.unet.using({}):
        return _sampled(base, lambda _z, _t: context, seeds)


def _sampled(base: MiniBase, context: Callable[[Tensor, Tensor], Context], seeds: Sequence[int]) -> Tensor:
    unet, count = base.unet, len(seeds)
    times, sigmas = levels(unet.schedule, SAMPLING.steps)
    empty = base.text.empty().expand(count, -1, -1)

    def clean_at(x: Tensor, number: int) -> Tensor:
        sigma, t = float(sigmas[number]), torch.full((count,), times[number])
        z = x / (1 + sigma**2) ** 0.5
        read = context(z, t)
        with bfloat16_products():
            without, said = unet.denoise(z, t, empty).float(), unet.denoise(z, t, read).float()
        return x - sigma * (without + host.GUIDANCE * (said - without))

    start = host.noise(seeds) * float(1 + sigmas[0] ** 2) ** 0.5
    return base.vae.decode(dpm_solver_2m(clean_at, start, sigmas)).cpu()
