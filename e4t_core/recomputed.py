"""A part of a graph that keeps nothing for its backward pass and is computed a second time there (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def recomputed(function: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
    """``function(given)``, with gradients to ``given`` alone.

    It is for many small passes that each keep much, such as one of the text encoder for every layer. PyTorch's own
    checkpoints do not reach what a function keeps by hooks of its own, as ComfyUI's text encoder has to.

    Args:
        function: of one tensor, with no state; called once now, and once in the backward pass.
        given: any shape.
    """
    if not (torch.is_grad_enabled() and given.requires_grad):
        return function(given)
    result: Tensor = _Recomputed.apply(given, function)
    return result


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(given)
        with torch.no_grad():
            return function(given.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        (given,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = given.detach().requires_grad_()
            made = ctx.function(leaf)
        torch.autograd.backward(made, gradient)
        return leaf.grad, None
