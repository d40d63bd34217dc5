"""All weights of a UNet as they train, and what they have learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .trained_weight import TrainedWeight
from .weight_changes import Full


def whole_unet(base: Mapping[str, Tensor], device: torch.device) -> dict[str, TrainedWeight]:
    """Masters of all weights of a base, private float32 copies on a device, by canonical name."""
    return {name: TrainedWeight.plain(base[name], device) for name in base}


@torch.no_grad()
def learned_differences(base: Mapping[str, Tensor], weights: Mapping[str, TrainedWeight]) -> Iterator[Full]:
    """Trained weight - base, one after the other; only tensors that changed."""
    for name, weight in weights.items():
        after = weight.make()
        difference = after - base[name].to(after.device, torch.float32)
        if difference.any():
            yield Full.of(name, difference)
