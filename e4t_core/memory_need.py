"""How much memory a plan needs, counted from shapes before anything is allocated; and which plan to try when.

What is held for certain (working weights, masters, moments, gradients) follows from counts of numbers. What lies between
the blocks of the network for the backward pass was measured with ``benchmarks.cost``, which traces the whole of a tuning
step at Stable Diffusion's true shapes; it grows with the picture's area, the micro-batch and the network's width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from .memory_plan import BALANCED, FAST, LEAN, LEANEST, MemoryPlan

# Numbers that one sample keeps for the backward pass, for each latent cell and channel of the first block.
KEPT, KEPT_CHECKPOINTED = 520.0, 95.0
# Workspaces of the card's kernels, the one weight that is being worked on, and gaps between blocks of memory.
WORKSPACES, GAPS = 0.35e9, 1.03
# Below these micro-batches the next plan is faster: the card waits for the program, not the program for the card.
LEAST = {FAST: 2, BALANCED: 4, LEAN: 4, LEANEST: 1}
FLOAT32 = 4


@dataclass(frozen=True)
class Trained:
    """What a method trains, in numbers.

    Attributes:
        unet: whether all weights of the UNet train.
        through: numbers of which UNet weights are made; held whether they train or not.
        beside: numbers that train on the card beside them.
        held: numbers of weights that are held as they were, in the UNet's type, where masters live.
        passes: of the UNet for each sample, held at once for the backward pass.
    """

    unet: bool = False
    through: int = 0
    beside: int = 0
    held: int = 0
    passes: int = 1


@dataclass(frozen=True)
class Work:
    """What a run has to compute.

    Attributes:
        trained: by the method.
        unet: numbers of the UNet's weights.
        width: channels of its first block.
        cells: of the latent.
        batch: samples of an optimizer step.
        itemsize: bytes of a number of the UNet's type.
        in_ram: the UNet computes in RAM itself (CPU, Apple).
    """

    trained: Trained
    unet: int
    width: int
    cells: int
    batch: int
    itemsize: int
    in_ram: bool = False


@dataclass(frozen=True)
class Need:
    """Bytes that a run holds at its peak, on the card and beside it in RAM."""

    card: float
    ram: float


def need(plan: MemoryPlan, work: Work) -> Need:
    """What a run needs at its peak; the text encoder and the driver's context are not counted."""
    plan, trained = plan.within(work.batch), work.trained
    masters = (work.unet if trained.unet else 0) + trained.through
    moments = (2 if plan.half_moments else 4) * 2 * masters
    state = FLOAT32 * masters + moments + work.itemsize * trained.held
    # A float32 master on the same device is the working weight itself.
    shared = work.itemsize == FLOAT32 and trained.unet and (work.in_ram or not plan.state_in_ram)
    leaves = 0 if shared else work.itemsize * work.unet
    # One backward pass for the batch needs no buffer: each gradient is used as soon as it is there.
    gradients = work.itemsize * work.unet if masters and plan.micro_batch < work.batch else 0
    beside = 4 * FLOAT32 * trained.beside
    kept = KEPT_CHECKPOINTED if plan.checkpointing else KEPT
    activations = kept * work.itemsize * work.width * work.cells * plan.micro_batch * trained.passes
    card = leaves + gradients + beside + activations + (0 if plan.state_in_ram else state)
    return Need(card * GAPS + WORKSPACES, state if plan.state_in_ram else 0.0)


def candidates(memory: str, micro_batch: int, batch: int) -> Iterator[MemoryPlan]:
    """The plans to try, from the fastest to the one that needs least.

    Args:
        memory: "auto", or the name of the plan to begin with; smaller ones follow it.
        micro_batch: to begin with; 0: the batch.
        batch: samples of an optimizer step.
    """
    plans = [plan for plan in LEAST if memory in ("auto", plan.name)]
    plans += [plan for plan in LEAST if plans and list(LEAST).index(plan) > list(LEAST).index(plans[-1])]
    for plan in plans:
        least = 1 if plan.name == memory else LEAST[plan]
        for size in sizes(micro_batch or batch, batch):
            if size >= min(least, batch, micro_batch or batch):
                yield dataclasses.replace(plan, micro_batch=size)


def sizes(first: int, batch: int) -> Iterator[int]:
    """Micro-batches from ``first`` down to 1, each about half the one before."""
    size = min(first, batch)
    while size > 1:
        yield size
        size = math.ceil(size / 2)
    yield 1
