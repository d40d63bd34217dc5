"""What looking for a subject in a photo takes of a card, on fake tensors: memory at the peak, and operations for each square.

The image backbone and the VAE are not counted: ComfyUI holds them, and moves them to the card and away as it needs room.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from e4t_core.methods.e4t.redrawing import AT_ONCE, Redrawing, structure
from e4t_core.methods.e4t.word_model import WordModel

from . import host
from .fake_world import CARD, RAM, FakeBase, fake_card, set_to
from .full_size import CLIP_LAYERS, CLIP_WIDTH, make_domain
from .memory_trace import MemoryTrace
from .operations import Operations
from .report import table


@dataclass(frozen=True)
class Search:
    """Attributes:
    at_once: squares that pass the UNet together.
    card: bytes at the peak.
    look, check, confirm: operations for one square.
    """

    at_once: int
    card: int
    look: float
    check: float
    confirm: float


def trace_search(base: FakeBase, side: int) -> list[Search]:
    """The search as it begins, and as it goes on where memory is short.

    Args:
        base: read by ``fake_world.load``.
        side: of a square's latent.
    """
    return [_traced(base, side, at_once) for at_once in (AT_ONCE, 1)]


def _traced(base: FakeBase, side: int, at_once: int) -> Search:
    trace, operations = MemoryTrace(), Operations()
    compute = host.pack("nodes.host.networks.compute_type")
    with trace:
        trace.follow(base.weights(), "ComfyUI's copy")
        networks = base.networks(torch.bfloat16)
    with ExitStack() as within:
        for one in (fake_card(), trace, operations, set_to(compute, uses_autocast=lambda _device: True)):
            within.enter_context(one)
        within.enter_context(compute.bfloat16_products(CARD))
        within.enter_context(torch.no_grad())
        unet, text = networks.unet, networks.text
        domain = make_domain(unet, RAM)
        weights, offsets = unet.parameters(), domain.offsets.fixed()
        lent = {name: offsets.apply(name, weights[name].float().to(RAM)) for name in domain.offsets.names}
        within.enter_context(unet.using(lent))
        info, encoder = domain.info, domain.encoder.to(CARD)
        words = WordModel.of(unet, text, encoder, info.word, info.scale, info.templates)
        nothing: Any = None
        redrawing = Redrawing(words, nothing, at_once=at_once)
        latents = torch.empty(at_once, 4, side, side)
        features = torch.empty(at_once, CLIP_LAYERS, CLIP_WIDTH)
        held = structure(latents)
        marks = [operations.total]
        for passed in (
            lambda: redrawing.shares(latents, held),
            lambda: redrawing.scores(latents, held, features),
            lambda: redrawing.details(latents, features),
        ):
            passed()
            marks.append(operations.total)
    look, check, details = ((after - before) / at_once for before, after in pairwise(marks))
    return Search(at_once, trace.peak(CARD.type).size, look, check, check + details)


def show_search(name: str, found: list[Search], driver: float) -> None:
    """Prints the table; ``driver``: bytes of a card that CUDA takes for itself."""
    rows = [
        (
            search.at_once,
            *(f"{size / 1e9:.2f}" for size in (search.card, search.card + driver)),
            *(f"{count / 1e9:.1f}" for count in (search.look, search.check, search.confirm)),
        )
        for search in found
    ]
    header = (f"{name}: squares together", "card, GB", "with driver", "a look, GFLOP", "a check", "a confirmation")
    print(table(header, rows), end="\n\n")
