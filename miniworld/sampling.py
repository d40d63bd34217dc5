"""A plain DDIM sampler for the sample sheets of training runs; everything that is measured is sampled by ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor


def alphas_cumprod() -> Tensor:
    """Stable Diffusion 1.x's schedule: 1000 steps, betas linear in their square roots."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()


@torch.no_grad()
def sample(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
    context: Tensor,
    empty: Tensor,
    seed: int,
    steps: int = 20,
    guidance: float = 5.0,
) -> Tensor:
    """Latents ``(B, 4, 16, 16)`` for contexts ``(B, 77, 768)``; ``empty`` is ``(1, 77, 768)``."""
    count = len(context)
    noise = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 4, 16, 16, generator=noise)
    both = torch.cat([context, empty.expand(count, -1, -1)])
    alphas = alphas_cumprod()
    times = torch.linspace(999, 0, steps + 1).round().long()
    for now, after in pairwise(times):
        positive, negative = denoise(torch.cat([z, z]), now.expand(2 * count), both).float().chunk(2)
        epsilon = negative + guidance * (positive - negative)
        a, b = alphas[now], alphas[after]
        clean = (z - (1 - a).sqrt() * epsilon) / a.sqrt()
        z = clean if after == 0 else b.sqrt() * clean + (1 - b).sqrt() * epsilon
    return z
