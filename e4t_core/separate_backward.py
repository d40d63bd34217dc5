"""A part of a graph whose backward pass is over before that of the rest begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def separate_backward(function: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
    """``function(given)``, with gradients to ``given`` and to all that the function uses.

    Where two parts of a graph use one weight, PyTorch holds the gradient that comes first until the other one is there.
    Apart, each is added to the weight's ``.grad`` as it comes: E4T looks at a photo and draws it with the same weights, and
    so spares what the gradients of half of the UNet take. A hook for a weight's complete gradient is then called once for each.

    Args:
        function: of one tensor; called once, at once.
        given: any shape; requires a gradient.
    """
    result: Tensor = _Separate.apply(given, function)
    return result


class _Separate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            ctx.leaf = given.detach().requires_grad_()
            ctx.made = function(ctx.leaf)
        return ctx.made.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        made, leaf = ctx.made, ctx.leaf
        del ctx.made, ctx.leaf
        torch.autograd.backward(made, gradient)
        return leaf.grad, None
