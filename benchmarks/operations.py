"""Floating-point operations, counted as they are dispatched, with PyTorch's own formulas (``torch.utils.flop_counter``)."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


# PyTorch's table has the attention kernels of graphics cards only.
FORMULAS: dict[Any, Any] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Operations(TorchDispatchMode):
    """Counts products while it is entered; elementwise operations are none of them.

    Attributes:
        total: operations so far; a multiplication with its addition is two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None and func.namespace == "aten":
            # In inference mode composite operations come whole.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = self.compute(func, args, kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of one operation."""
        return func(*args, **kwargs)
