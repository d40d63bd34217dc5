"""Weight offsets of the attention projections, in the exact rank-3 form (the paper's section 3.2).

A matrix ``W0`` of M outputs and N inputs becomes ``W = W0 * (1 + Delta)``. The paper's network gives Delta from a constant
``v0`` by four linear layers: two make ``y in R^M`` and ``u in R^N``, whose outer product passes a linear over the rows
(``B``, ``b``) and one over the columns (``A``, ``a``). Written out, that is exactly

    Delta = (B y)(A u)^T + (B 1) a^T + b 1^T = P Q^T,   P = [B y, B 1, b] (M, 3),   Q = [A u, a, 1] (N, 3)

so no M×M×N product is ever built. The four-layer form is what is trained (it is the paper's prior: Adam on P and Q
directly would move Delta hundreds of times less at the same rate); P and Q are what a finished domain or concept needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .seeded_linear import seeded_linear

WEIGHT = ".weight"
NETWORK, DIRECT, HYPERNETWORK = "network", "direct", "hypernetwork"
FORMS = (NETWORK, DIRECT, HYPERNETWORK)
"""The paper's form, and two that it compares it with; see ``offset_forms``."""


class MatrixOffset(nn.Module):
    """The four-layer offset of one matrix; Delta = 0 at the start, because ``B`` (row.weight) and ``b`` are zero.

    With ``constant`` it learns its own input v0; without, it is given one at every call.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        v_size: int,
        generator: torch.Generator,
        device: torch.device | str | None,
        constant: bool = True,
    ) -> None:
        super().__init__()
        rows, columns = shape
        if constant:
            self.v0 = nn.Parameter(torch.ones(v_size, device=device))
        self.y = seeded_linear(v_size, rows, generator, device)
        self.u = seeded_linear(v_size, columns, generator, device)
        self.column = seeded_linear(columns, columns, generator, device)
        self.row = nn.Linear(rows, rows, device="meta")
        if self.y.weight.device.type != "meta":
            self.row.to_empty(device=self.y.weight.device)
            nn.init.zeros_(self.row.weight)
            nn.init.zeros_(self.row.bias)

    def forward(self, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """P ``(M, 3)`` and Q ``(N, 3)``."""
        v = self.v0 if v is None else v
        y, u = self.y(v), self.u(v)
        a, b = self.column.bias, self.row.bias
        p = torch.stack([self.row.weight @ y, self.row.weight.sum(dim=1), b], dim=1)
        q = torch.stack([self.column.weight @ u, a, torch.ones_like(a)], dim=1)
        return p, q


class FixedOffsets(Protocol):
    """Offsets that no longer change."""

    def apply(self, name: str, weight: Tensor) -> Tensor:
        """``W0 * (1 + Delta)`` of one matrix ``(M, N)``."""


class Offsets(nn.Module):
    """What all forms of weight offsets share: one Delta for each attention projection, ``W = W0 * (1 + Delta)``.

    State keys begin with the canonical name without ".weight".

    Args:
        shapes: canonical names (ending in ".weight") -> (M out, N in), as ``UNet.attention_projections()`` gives.
        v_size: length of what a Delta is made from.

    Raises:
        ValueError: a name does not end in ".weight".
    """

    form: str
    per_photo = False
    """Whether Delta depends on the photo; otherwise a domain has one, which all its concepts share."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], v_size: int) -> None:
        super().__init__()
        self.shapes = {name: (int(m), int(n)) for name, (m, n) in shapes.items()}
        self.v_size = v_size
        for name in self.shapes:
            if not name.endswith(WEIGHT):
                raise ValueError(
                    f"Projection {name!r} must be named after its weight: the name has to end in '.weight'."
                )

    def blank(self) -> Offsets:
        """Offsets of the same form and shapes on the "meta" device, to be filled with a state."""
        return type(self)(self.shapes, self.v_size, device="meta")  # type: ignore[call-arg]

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of the offset matrices, in the order given."""
        return tuple(self.shapes)

    def applied(self, name: str, weight: Tensor, clip_features: Tensor | None = None) -> Tensor:
        """``W0 * (1 + Delta)`` of one matrix ``(M, N)``, differentiable.

        Args:
            clip_features: ``(1, L, C)`` of the photo, where Delta depends on it.

        Raises:
            KeyError: no such matrix.
        """
        raise NotImplementedError

    def apply_all(self, weights: Mapping[str, Tensor], clip_features: Tensor | None = None) -> dict[str, Tensor]:
        """The same for every offset matrix; ``weights``, by canonical name, may hold more, which are left out."""
        return {name: self.applied(name, weights[name], clip_features) for name in self.shapes}

    def parameters_of(self, name: str) -> tuple[nn.Parameter, ...]:
        """What one matrix's Delta is made from; no other's is.

        Raises:
            KeyError: no such matrix.
        """
        return tuple(self._matrix(name).parameters())

    def fixed(self, clip_features: Tensor | None = None) -> FixedOffsets:
        """The offsets as they are now."""
        raise NotImplementedError

    def shared(self) -> dict[str, tuple[Tensor, Tensor]]:
        """P ``(M, R)`` and Q ``(N, R)`` of what all concepts of a domain have in common; empty where there is none."""
        return {}

    def _place(self, name: str, module: nn.Module) -> None:
        *folders, leaf = name.removesuffix(WEIGHT).split(".")
        parent: nn.Module = self
        for folder in folders:
            # Nested modules make the state keys read like the canonical names.
            if folder not in parent._modules:
                parent.add_module(folder, nn.Module())
            parent = parent.get_submodule(folder)
        parent.add_module(leaf, module)

    def _matrix(self, name: str) -> nn.Module:
        if name not in self.shapes:
            raise KeyError(f"There is no weight offset for {name!r}.")
        return self.get_submodule(name.removesuffix(WEIGHT))


@dataclass(frozen=True, eq=False)
class Factors:
    """Finished offsets as P ``(M, 3)`` and Q ``(N, 3)`` by canonical name."""

    pairs: Mapping[str, tuple[Tensor, Tensor]]

    def apply(self, name: str, weight: Tensor) -> Tensor:
        """``W0 * (1 + P Q^T)`` of one matrix."""
        return offset_weight(weight, *self.pairs[name])


class WeightOffsets(Offsets):
    """The paper's: one :class:`MatrixOffset` per attention projection, made from a learned constant.

    State keys end in ``v0`` or ``{y,u,column,row}.{weight,bias}``:
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.column.bias".

    Args:
        shapes: see :class:`Offsets`.
        v_size: length of the learned constant ``v0``; more than 1 does not enlarge what can be expressed.
        generator: random stream of the start; a fixed one by default. The global one is never touched.
        device: where the parameters live; "meta" for shapes only.

    Raises:
        ValueError: a name does not end in ".weight".
    """

    form = NETWORK

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        v_size: int = 1,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(shapes, v_size)
        generator = generator or torch.Generator().manual_seed(0)
        for name, shape in self.shapes.items():
            self._place(name, MatrixOffset(shape, v_size, generator, device))

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """P ``(M, 3)`` and Q ``(N, 3)`` of one matrix, differentiable; Delta = P Q^T.

        Raises:
            KeyError: no such matrix.
        """
        matrix = self._matrix(name)
        with unrounded(next(matrix.parameters()).device):
            p, q = matrix()
        return p, q

    def applied(self, name: str, weight: Tensor, clip_features: Tensor | None = None) -> Tensor:
        return offset_weight(weight, *self.factors(name))

    def fixed(self, clip_features: Tensor | None = None) -> Factors:
        return Factors(self.collapse())

    def shared(self) -> dict[str, tuple[Tensor, Tensor]]:
        return self.collapse()

    def collapse(self) -> dict[str, tuple[Tensor, Tensor]]:
        """All P and Q, detached: what is needed once training is over (SD 1.5: 448,128 numbers)."""
        with torch.no_grad():
            return {name: (p.detach(), q.detach()) for name, (p, q) in self._all_factors()}

    def _all_factors(self) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        for name in self.shapes:
            yield name, self.factors(name)


def offset_weight(weight: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """``W0 * (1 + P Q^T)``: weight ``(M, N)``, p ``(M, 3)``, q ``(N, 3)``. With Delta = 0 it is ``W0``, bit for bit."""
    with unrounded(weight.device):
        return weight * (1.0 + p @ q.T)


def unrounded(device: torch.device) -> AbstractContextManager[object]:
    """Autocast, if any, is off within it.

    In bfloat16 there is no number between 1 and 1 + 1/128: rounded there, ``1 + Delta`` is 1 as long as Delta is small, so
    training would not see what it does, and would go on until it shows, by then far too far in float32.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
