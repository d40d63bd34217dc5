"""What learns a concept again: the photos as the networks saw them, and how the run used memory."""

from __future__ import annotations

from dataclasses import dataclass

from .memory_plan import MemoryPlan
from .photos import Photos


@dataclass(frozen=True, eq=False)
class Recipe:
    """Beside its base, its domain, its settings and its seed, all that a run needs to learn a concept again.

    On a CPU the same plan gives the same concept, bit for bit. The pictures can be recovered from it.

    Attributes:
        photos: float32 on the CPU, masks by latent cell.
        plan: with the micro-batch that was used, which decides the order of sums.
    """

    photos: Photos
    plan: MemoryPlan
