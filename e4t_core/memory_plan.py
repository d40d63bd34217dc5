"""How much is computed at once: what a tuning trades for memory, without changing what it learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryPlan:
    """How one run uses memory.

    Attributes:
        micro_batch: samples that pass the networks at once.
    """

    micro_batch: int

    def smaller(self) -> Iterator[MemoryPlan]:
        """The plans to try when this one does not fit: half the micro-batch each time, down to 1."""
        size = self.micro_batch
        while size > 1:
            size //= 2
            yield dataclasses.replace(self, micro_batch=size)
