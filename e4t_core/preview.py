"""What a run would draw now: a small look at a concept while it is learned, which changes nothing of it."""

from __future__ import annotations

import torch
from torch import Tensor

from .ddim import ddim
from .diffusion import draw_samples
from .run import Run

STEPS, GUIDANCE = 8, 3.0
PASSES = 2.5 * STEPS
"""About so many passes of one sample a preview takes: with and without the prompt, and the encoder's half for the word."""


@torch.no_grad()
def draw(run: Run, steps: int = STEPS, guidance: float = GUIDANCE) -> Tensor:
    """A latent ``(1, 4, h, w)`` that a run draws of its first template by DDIM, from noise of its seed.

    Args:
        run: its weights must be lent to the UNet. No random state beside its own is touched.
        steps: evenly spaced over the schedule.
        guidance: of the prompt; 1 draws without.
    """
    like = run.photos.latents
    z = draw_samples(run.seed, [0], latent_shape=like.shape[1:], batch=1, stream="preview").noise.to(like)
    return ddim(run.base.unet, z, run.context, run.base.text.empty(), steps, guidance)
