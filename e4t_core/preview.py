"""What a run would draw now: a small look at a concept while it is learned, which changes nothing of it."""

from __future__ import annotations

import torch
from torch import Tensor

from .diffusion import draw_samples
from .run import Run

STEPS, GUIDANCE = 8, 3.0
PASSES = 2.5 * STEPS
"""About so many passes of one sample a preview takes: with and without the prompt, and the encoder's half for the word."""


@torch.no_grad()
def draw(run: Run, steps: int = STEPS, guidance: float = GUIDANCE) -> Tensor:
    """A latent ``(1, 4, h, w)`` that a run draws of its first template, from noise of its seed.

    Deterministic DDIM (Song et al. 2021, equation 12 with sigma = 0) under classifier-free guidance:

        z_s = sqrt(a_s) z_0 + sqrt(1 - a_s) eps,    eps = eps_empty + g (eps_prompt - eps_empty)

    Args:
        run: its weights must be lent to the UNet. No random state beside its own is touched.
        steps: evenly spaced over the schedule.
        guidance: g; 1 draws without.
    """
    unet = run.base.unet
    schedule, like = unet.schedule, run.photos.latents
    z = draw_samples(run.seed, [0], latent_shape=like.shape[1:], batch=1, stream="preview").noise.to(like)
    empty = run.base.text.empty().to(like.device)
    kept = schedule.alphas_cumprod.to(like)
    levels = torch.linspace(schedule.timesteps - 1, 0, steps + 1).round().long().tolist()
    for now, after in zip(levels, [*levels[1:-1], None], strict=False):
        t = torch.full((1,), now, device=like.device)
        said = unet.denoise(z, t, run.context(z, t))
        if guidance != 1:
            without = unet.denoise(z, t, empty)
            said = without + guidance * (said - without)
        signal, spread = kept[now].sqrt(), (1 - kept[now]).sqrt()
        if unet.prediction == "v":
            clean, noise = signal * z - spread * said, signal * said + spread * z
        else:
            clean, noise = (z - spread * said) / signal, said
        z = clean if after is None else kept[after].sqrt() * clean + (1 - kept[after]).sqrt() * noise
    return z
