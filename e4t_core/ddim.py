"""Deterministic DDIM (Song et al. 2021, equation 12 with sigma = 0) under classifier-free guidance.

    z_s = sqrt(a_s) z_0 + sqrt(1 - a_s) eps,    eps = eps_empty + g (eps_prompt - eps_empty)

Small looks at a run, and pictures of the base where there is no ComfyUI, are drawn by it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .layer_contexts import Context, changed
from .unet import UNet

ContextAt = Callable[[Tensor, Tensor], Context]
"""The prompt's context ``(1 or B, L, D)``, or one for each cross-attention layer, for ``z`` ``(B, 4, h, w)`` at ``t`` ``(B,)``."""


@torch.no_grad()
def ddim(
    unet: UNet,
    z: Tensor,
    context: ContextAt,
    empty: Tensor,
    steps: int,
    guidance: float,
    on_step: Callable[[], object] = lambda: None,
) -> Tensor:
    """Latents ``(B, 4, h, w)`` in the UNet's scale.

    Args:
        unet: with the weights that draw; call it inside ``unet.using(...)``.
        z: noise ``(B, 4, h, w)``.
        context: of the prompt, asked for at every step.
        empty: context ``(1, L, D)`` of the empty prompt.
        steps: evenly spaced over the schedule.
        guidance: g; 1 draws without.
        on_step: called after every step.
    """
    schedule, count = unet.schedule, len(z)
    empty = empty.to(z.device).expand(count, -1, -1)
    kept = schedule.alphas_cumprod.to(z)
    levels = torch.linspace(schedule.timesteps - 1, 0, steps + 1).round().long().tolist()
    for now, after in zip(levels, [*levels[1:-1], None], strict=False):
        t = torch.full((count,), now, device=z.device)
        said = unet.denoise(z, t, changed(context(z, t), lambda one: one.expand(count, -1, -1)))
        if guidance != 1:
            without = unet.denoise(z, t, empty)
            said = without + guidance * (said - without)
        signal, spread = kept[now].sqrt(), (1 - kept[now]).sqrt()
        if unet.prediction == "v":
            clean, noise = signal * z - spread * said, signal * said + spread * z
        else:
            clean, noise = (z - spread * said) / signal, said
        z = clean if after is None else kept[after].sqrt() * clean + (1 - kept[after]).sqrt() * noise
        on_step()
    return z
