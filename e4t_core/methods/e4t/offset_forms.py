"""Forms of the weight offsets that the paper compares with its own (its ablations), and the choice between all of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .weight_offsets import (
    DIRECT,
    FORMS,
    HYPERNETWORK,
    NETWORK,
    Factors,
    FixedOffsets,
    MatrixOffset,
    Offsets,
    WeightOffsets,
    offset_weight,
    unrounded,
)


class _Delta(nn.Module):
    def __init__(self, shape: tuple[int, int], device: torch.device | str | None) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(shape, device=device))


class _Deltas:
    """Finished offsets as whole matrices."""

    def __init__(self, deltas: Mapping[str, Tensor]) -> None:
        self._deltas = deltas

    def apply(self, name: str, weight: Tensor) -> Tensor:
        with unrounded(weight.device):
            return weight * (1.0 + self._deltas[name])


class DirectOffsets(Offsets):
    """Every Delta ``(M, N)`` is learned entry by entry, without a network ("offsets learned directly"); 0 at the start.

    State keys end in ``delta``. There is no randomness: ``generator`` is taken for the other forms' sake.
    """

    form = DIRECT

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        v_size: int = 1,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(shapes, v_size)
        for name, shape in self.shapes.items():
            self._place(name, _Delta(shape, device))

    def applied(self, name: str, weight: Tensor, clip_features: Tensor | None = None) -> Tensor:
        return _Deltas({name: self._matrix(name).delta}).apply(name, weight)  # type: ignore[dict-item]

    def fixed(self, clip_features: Tensor | None = None) -> FixedOffsets:
        return _Deltas({name: self._matrix(name).delta.detach().clone() for name in self.shapes})  # type: ignore[operator]

    def shared(self) -> dict[str, tuple[Tensor, Tensor]]:
        """P ``(M, N)`` is Delta itself and Q ``(N, N)`` the identity: what is shared stays a product, though no thin one."""
        deltas = {name: self._matrix(name).delta.detach().clone() for name in self.shapes}  # type: ignore[operator]
        return {name: (delta, torch.eye(delta.shape[1], device=delta.device)) for name, delta in deltas.items()}


class HyperOffsets(Offsets):
    """The four layers are fed what CLIP says of the photo in place of a learned constant ("HyperNetwork").

    Its input is the last [CLS] vector that the domain reads, normalized to mean 0 and variance 1; of several photos, their mean. State keys
    end in ``{y,u,column,row}.{weight,bias}``. Each concept has offsets of its own, so a batch of several photos cannot be
    computed with one set of weights.

    Args:
        shapes: see :class:`~.weight_offsets.Offsets`.
        v_size: C, width of a [CLS] vector.
        generator, device: as of :class:`~.weight_offsets.WeightOffsets`.
    """

    form, per_photo = HYPERNETWORK, True

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        v_size: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(shapes, v_size)
        generator = generator or torch.Generator().manual_seed(0)
        for name, shape in self.shapes.items():
            self._place(name, MatrixOffset(shape, v_size, generator, device, constant=False))

    def _factors(self, name: str, clip_features: Tensor | None) -> tuple[Tensor, Tensor]:
        if clip_features is None:
            raise ValueError("HyperNetwork offsets need the photo's CLIP features.")
        with unrounded(clip_features.device):
            v = F.layer_norm(clip_features.detach().float()[:, -1], (self.v_size,)).mean(dim=0)
            p, q = self._matrix(name)(v)
        return p, q

    def applied(self, name: str, weight: Tensor, clip_features: Tensor | None = None) -> Tensor:
        return offset_weight(weight, *self._factors(name, clip_features))

    def fixed(self, clip_features: Tensor | None = None) -> Factors:
        with torch.no_grad():
            return Factors({name: self._factors(name, clip_features) for name in self.shapes})


def make_offsets(
    form: str,
    shapes: Mapping[str, tuple[int, int]],
    v_size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Offsets:
    """New offsets of a form.

    Args:
        form: "network" (the paper's), "direct" or "hypernetwork".
        v_size: length of the learned constant; of a [CLS] vector for "hypernetwork".

    Raises:
        ValueError: there is no such form.
    """
    kinds: dict[str, type[Offsets]] = {NETWORK: WeightOffsets, DIRECT: DirectOffsets, HYPERNETWORK: HyperOffsets}
    if form not in kinds:
        raise ValueError(f"Offset form {form!r} must be one of {', '.join(FORMS)}.")
    return kinds[form](shapes, v_size, generator, device)  # type: ignore[call-arg]
