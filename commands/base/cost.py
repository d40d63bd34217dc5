"""What a pass of networks costs, counted on the meta device: shapes alone flow, and no number is computed.

Floating-point operations are those of ``torch.utils.flop_counter`` (a multiply-add is two; matrix products, convolutions
and attention count, norms and additions do not).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def count_operations(run: Callable[[], object]) -> int:
    """Floating-point operations of what ``run`` does on the meta device, backward passes among them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def count_peak(run: Callable[[], object]) -> int:
    """Largest number of bytes that tensors made by ``run`` hold at once; it must be on the meta device.

    Attention is taken to be a kernel that keeps its inputs and output, but not the attention matrix, as on any GPU.
    """
    with _HeldBytes() as held, _fused_attention():
        run()
    return held.peak


class _HeldBytes(TorchDispatchMode):
    """Follows every storage that is made inside, from its first tensor to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage(), made_here=False)
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage(), made_here=True)
        return made

    def _follow(self, storage: torch.UntypedStorage, made_here: bool) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if made_here else 0  # a view of a weight takes no room
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@contextmanager
def _fused_attention() -> Iterator[None]:
    """The meta device knows attention only as two products with the whole matrix between them.

    It is exchanged by name: a ``TorchFunctionMode`` is off during backward passes, in which checkpointing repeats forward ones.
    """
    real = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *rest: object, **options: object) -> Tensor:
        return _KeepsNoMatrix.apply(query, key, value)

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real


class _KeepsNoMatrix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])
