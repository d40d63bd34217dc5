"""AdamW for the training loop, and how its last step is taken back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .loop_settings import LoopSettings


def make_optimizer(groups: Iterable[dict[str, Any]], settings: LoopSettings, fused: bool = False) -> torch.optim.AdamW:
    """AdamW over a run's parameter groups, with the settings' values where a group says nothing else.

    Args:
        fused: one kernel in place of some thousands. On a CPU its order of operations changes the bits.
    """
    parts = list(groups)
    optimizer = torch.optim.AdamW(
        parts,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=fused or None,
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Every group's learning rate as a share of what it began with."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * share


@torch.no_grad()
def are_finite(gradients: list[Tensor]) -> bool:
    """Whether no gradient holds NaN or infinity; one answer for all of them, whatever their devices."""
    if not gradients:
        return True
    # The largest number, not the length: squares of finite numbers may overflow in float16.
    largest = torch._foreach_norm(gradients, ord=float("inf"))
    return bool(torch.isfinite(torch.stack([size.to(largest[0].device, torch.float32) for size in largest])).all())


@torch.no_grad()
def undo_step(optimizer: torch.optim.AdamW) -> None:
    """Take the last step back, up to rounding, by AdamW's own formula turned round.

    The step was ``w = w (1 - lr wd) - lr m' / (sqrt(v') + eps)`` (Loshchilov and Hutter, 2019, algorithm 2), and the
    moments are still those it was made with. So no copy of the weights has to be kept. The moments themselves are not
    taken back: call it once, at the end of a run.
    """
    for group in optimizer.param_groups:
        (beta1, beta2), rate = group["betas"], group["lr"]
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if not state:
                continue
            step = float(state["step"])
            spread: Tensor = state["exp_avg_sq"].sqrt() / (1 - beta2**step) ** 0.5
            parameter.addcdiv_(state["exp_avg"], spread.add_(group["eps"]), value=rate / (1 - beta1**step))
            parameter.div_(1 - rate * group["weight_decay"])
