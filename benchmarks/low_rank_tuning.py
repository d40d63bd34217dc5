"""Tuning in low-rank coordinates from the start: every matrix of the UNet is ``W0 (1 + Delta) + up @ down``, the offsets stay.

For the compact benchmark alone: it asks whether a concept that is to be kept small should be learned small.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from . import host

# How many learning rates a factor moves by in a step. With 30 a validation face is learned about as well as by whole matrices; at
# 100 the loss does not fall any more.
SCALE = 30.0


def low_rank_method(domain: Any, rank: int) -> Any:
    """E4T for a domain of the pack's, with factors of this rank in place of whole matrices."""
    method = host.pack("e4t_core.methods.e4t.method")
    trained = host.pack("e4t_core.trained_weight").TrainedWeight

    class LowRankE4T(method.E4T):  # type: ignore[name-defined]
        def start(self, base: Any, photos: Any, settings: Any, *more: Any) -> Any:
            still = replace(settings, train_unet=False, train_offsets=False)
            run = super().start(base, photos, still, *more)
            weights, generator = run.tuned.weights, torch.Generator().manual_seed(0)
            for name in run.effective:
                start = weights[name].make() if name in weights else run.effective[name]
                weights[name] = _trained(trained, start.detach().float().clone(), rank, generator)
                run.tuned._moved.add(name)
            return run

    return LowRankE4T(domain)


def _trained(kind: Any, start: Tensor, rank: int, generator: torch.Generator) -> Any:
    """One weight; vectors train as they are."""
    if start.ndim < 2:
        return kind.plain(start, start.device)
    rows, columns = start.shape[0], start[0].numel()
    rank = min(rank, rows, columns)
    # As a LoRA starts: a product of zero, whose one factor is drawn. AdamW moves a parameter by one rate, a factor by SCALE of them.
    down = torch.randn((rank, columns), generator=generator) / (columns**0.5 * SCALE)
    parts = nn.Parameter(torch.zeros(rows, rank)), nn.Parameter(down)
    return kind(parts, lambda: start + (SCALE**2 * (parts[0] @ parts[1])).reshape(start.shape))
