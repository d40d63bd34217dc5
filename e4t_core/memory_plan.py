"""How much a tuning holds, and where: what is traded for memory without changing what is learned."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

RAM = torch.device("cpu")
"""Where state lives that a plan keeps off the card."""


@dataclass(frozen=True)
class MemoryPlan:
    """How one run uses memory. Every plan gives the same concept, up to rounding.

    A run holds the weights that the UNet computes with (working weights, in the UNet's number type) on the card. What
    they are made from, the float32 masters, and AdamW's two moments of each number are the run's state.

    Attributes:
        name: what it is called in settings and texts.
        micro_batch: samples that pass the networks at once; 0: the whole batch.
        checkpointing: what lies between two blocks is kept for the backward pass, what is inside is computed again.
        state_in_ram: the state lives in RAM, and AdamW runs there; the card gets new working weights after every step.
        half_moments: AdamW's moments rest in bfloat16; its arithmetic stays float32.
    """

    name: str = "fast"
    micro_batch: int = 0
    checkpointing: bool = False
    state_in_ram: bool = False
    half_moments: bool = False

    def within(self, batch: int) -> MemoryPlan:
        """The same with a micro-batch from 1 to a batch."""
        return dataclasses.replace(self, micro_batch=min(self.micro_batch or batch, batch))

    def state_device(self, card: torch.device) -> torch.device:
        """Where masters and moments live, when the UNet is on ``card``."""
        return RAM if self.state_in_ram else card

    def told(self) -> str:
        """The plan in a few words, for the node and the log."""
        parts = [f"micro-batch {self.micro_batch}"]
        parts += ["checkpointing"] if self.checkpointing else []
        parts += ["masters and moments in RAM"] if self.state_in_ram else []
        parts += ["moments in bfloat16"] if self.half_moments else []
        return f"{self.name} plan: {', '.join(parts)}"


FAST = MemoryPlan("fast")
BALANCED = MemoryPlan("balanced", checkpointing=True, half_moments=True)
LEAN = MemoryPlan("lean", checkpointing=True, state_in_ram=True)
LEANEST = MemoryPlan("leanest", checkpointing=True, state_in_ram=True, half_moments=True)

PLANS: dict[str, MemoryPlan] = {plan.name: plan for plan in (FAST, BALANCED, LEAN, LEANEST)}
"""From the one that holds most on the card to the one that holds least."""
