"""One weight of the UNet as a function of what trains it, and the kinds of function that methods use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class TrainedWeight:
    """A weight that a run lends to the UNet.

    It is made anew after every optimizer step, tensor by tensor, so that nothing but the result has to be held beside
    what trains. No parameter belongs to two weights.

    Attributes:
        parameters: float32, what trains it; none: the weight is made once.
        make: the weight, float32, differentiable in the parameters and on their device.
    """

    parameters: tuple[nn.Parameter, ...]
    make: Callable[[], Tensor]

    @classmethod
    def plain(cls, start: Tensor, device: torch.device) -> TrainedWeight:
        """A weight that trains as it is, from a private float32 copy on a device."""
        parameter = nn.Parameter(start.detach().to(device, torch.float32, copy=True))
        return cls((parameter,), lambda: parameter)

    @classmethod
    def fixed(cls, make: Callable[[], Tensor]) -> TrainedWeight:
        """A weight that does not train."""
        return cls((), make)


@torch.no_grad()
def made(weights: Mapping[str, TrainedWeight]) -> dict[str, Tensor]:
    """All weights as they are now, float32 and without gradients, by name."""
    return {name: weight.make().detach() for name, weight in weights.items()}
