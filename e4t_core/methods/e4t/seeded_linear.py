"""Linear layers whose first weights come from a local random stream, so that nothing touches the global one."""

from __future__ import annotations

import torch
from torch import nn


def seeded_linear(
    inputs: int, outputs: int, generator: torch.Generator, device: torch.device | str | None = None
) -> nn.Linear:
    """An ``nn.Linear`` with torch's usual start, U(-1/sqrt(inputs), 1/sqrt(inputs)), drawn from ``generator``.

    On the "meta" device nothing is drawn: only shapes exist there.
    """
    layer = nn.Linear(inputs, outputs, device="meta")
    if torch.device(device or "cpu").type == "meta":
        return layer
    layer = layer.to_empty(device=device or "cpu")
    bound = inputs**-0.5
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            # Drawn on the CPU: the same seed gives the same layer on every device.
            drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.copy_(drawn)
    return layer
