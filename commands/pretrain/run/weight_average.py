"""The exponential moving average of what is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of a module's trained weights.

    Args:
        decay: per step; 0 keeps none.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state: dict[str, Tensor] = (
            {name: weight.detach().clone() for name, weight in module.named_parameters() if weight.requires_grad}
            if decay
            else {}
        )

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after step number ``step``, counted from 1; a young average forgets faster."""
        weight = 1 - min(self.decay, step / (step + 10))
        for name, value in module.named_parameters():
            if name in self.state:
                self.state[name].lerp_(value, weight)

    @contextmanager
    def used_by(self, module: nn.Module) -> Iterator[None]:
        """The module has the averaged weights, if there are any; afterwards its own again."""
        own = {name: weight.detach().clone() for name, weight in module.named_parameters() if name in self.state}
        try:
            _fill(module, self.state)
            yield
        finally:
            _fill(module, own)


@torch.no_grad()
def _fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = dict(module.named_parameters())
    for name, value in state.items():
        own[name].copy_(value)
