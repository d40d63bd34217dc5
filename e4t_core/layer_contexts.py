"""Contexts of their own for cross-attention layers: what XTI and Perfusion give a UNet in place of one context for all.

A layer is named by its attention, in canonical names ("down_blocks.0.attentions.0.transformer_blocks.0.attn2"). What its keys
and what its values are made of may differ. A host gives them by hooks on the two projections, which see what they multiply.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

KEY, VALUE = ".to_k", ".to_v"
_WEIGHT = f".attn2{KEY}.weight"


@dataclass(frozen=True, eq=False)
class LayerContexts:
    """A context for every layer.

    Attributes:
        plain: ``(B, L, D)``, what a layer reads that is not named here.
        keys, values: by layer, ``(B, L, D)``.
    """

    plain: Tensor
    keys: Mapping[str, Tensor]
    values: Mapping[str, Tensor]

    def map(self, change: Callable[[Tensor], Tensor]) -> LayerContexts:
        """The same with every context changed; one that is in several places is changed once."""
        made: dict[int, Tensor] = {}

        def changed(context: Tensor) -> Tensor:
            if id(context) not in made:
                made[id(context)] = change(context)
            return made[id(context)]

        keys, values = ({name: changed(one) for name, one in part.items()} for part in (self.keys, self.values))
        return dataclasses.replace(self, plain=changed(self.plain), keys=keys, values=values)


Context = Tensor | LayerContexts
"""What cross-attention reads: ``(B, L, D)``, or one for each layer."""


def changed(context: Context, change: Callable[[Tensor], Tensor]) -> Context:
    """A context, or each of several, after a change."""
    return context.map(change) if isinstance(context, LayerContexts) else change(context)


def cross_attentions(projections: Iterable[str]) -> tuple[str, ...]:
    """Names of the cross-attention layers whose projections are among these, in the order of names."""
    return tuple(sorted(name.removesuffix(f"{KEY}.weight") for name in projections if name.endswith(_WEIGHT)))


class ContextHooks:
    """Gives a network's cross-attention layers what :class:`LayerContexts` says.

    Blocks that are computed again in the backward pass read what was given last, so a backward pass comes before the next
    call of :meth:`plain`.

    Args:
        network: whose modules they are; hooks are on it only within :meth:`placed`.
        modules: canonical name of a layer -> its module's name in the network.
    """

    def __init__(self, network: nn.Module, modules: Mapping[str, str]) -> None:
        self._network, self._modules = network, dict(modules)
        self._given: LayerContexts | None = None
        self._depth = 0

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Within it, contexts of layers are followed; it is held open over the backward pass. It may be entered again."""
        handles: list[Any] = []
        before = self._given
        try:
            if self._depth == 0:
                for layer, name in self._modules.items():
                    for part in (KEY, VALUE):
                        module = self._network.get_submodule(f"{name}{part}")
                        handles.append(module.register_forward_pre_hook(self._hook(layer, part)))
            self._depth += 1
            yield
        finally:
            self._depth = max(0, self._depth - 1)
            self._given = before
            for handle in handles:
                handle.remove()

    def plain(self, context: Context) -> Tensor:
        """What to call the network with, ``(B, L, D)``; layers that are named read their own.

        Raises:
            KeyError: a layer that the network has not.
        """
        if not isinstance(context, LayerContexts):
            self._given = None
            return context
        unknown = sorted({*context.keys, *context.values} - self._modules.keys())
        if unknown:
            raise KeyError(f"The UNet has no cross-attention {unknown[0]!r}.")
        self._given = context
        return context.plain

    def _hook(self, layer: str, part: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Tensor, ...] | None]:
        def hook(_module: nn.Module, _given: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
            if self._given is None:
                return None
            own = (self._given.keys if part == KEY else self._given.values).get(layer)
            return None if own is None else (own,)

        return hook
