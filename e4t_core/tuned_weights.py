"""The weights of a UNet while it is tuned, without touching the UNet: ``W = (W0 + d) * (1 + Δ)``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .weight_offsets import WeightOffsets, offset_weight


class TunedWeights:
    """Trainable float32 copies where something trains, the base's own tensors everywhere else.

    With ``train_unet`` a copy holds ``W0 + d`` for every parameter (copies, not differences: they need no sum in the
    graph). Otherwise nothing but the offsets is held; only inference tensors (ComfyUI's, made under
    ``torch.inference_mode``) are cloned, since autograd refuses to save them for the backward pass.

    Args:
        base: the effective base weights by canonical name; never written to.
        offsets: a private copy, trainable or not; its device is that of the UNet.
        train_offsets: whether Δ trains.
        train_unet: whether all UNet weights train.
    """

    def __init__(
        self, base: Mapping[str, Tensor], offsets: WeightOffsets, train_offsets: bool, train_unet: bool
    ) -> None:
        self._base = base
        self._offsets = offsets
        self.parameters: list[nn.Parameter] = []
        self._held: dict[str, Tensor] = {}
        for name, weight in self._base.items():
            if train_unet and weight.is_floating_point():
                copy = nn.Parameter(weight.detach().to(torch.float32, copy=True))
                self._held[name] = copy
                self.parameters.append(copy)
            elif weight.is_inference():
                self._held[name] = weight.clone()
        if train_offsets:
            self.parameters.extend(offsets.parameters())
        self._factors = None if train_offsets else offsets.collapse()
        self._trains = bool(self.parameters)
        self._constant: dict[str, Tensor] | None = None
        self._before = offsets.collapse()

    def effective(self) -> dict[str, Tensor]:
        """The weights to lend to ``UNet.using``, differentiable; those left out are the base's."""
        if self._constant is not None:
            return self._constant
        weights = dict(self._held)
        for name in self._offsets.names:
            p, q = self._offsets.factors(name) if self._factors is None else self._factors[name]
            weights[name] = offset_weight(self._held.get(name, self._base[name]).float(), p, q)
        if not self._trains:
            # Nothing can change: the products are made once for all micro-batches.
            self._constant = weights
        return weights

    @torch.no_grad()
    def differences(self) -> dict[str, Tensor]:
        """Tuned weight − (base + domain offset), float32 on the CPU; only tensors that changed."""
        differences: dict[str, Tensor] = {}
        if not self._trains:
            return differences
        now = self._offsets.collapse()
        for name, base in self._base.items():
            if not base.is_floating_point():
                continue
            before, after = base.float(), self._held.get(name, base).float()
            if name in now:
                before, after = offset_weight(before, *self._before[name]), offset_weight(after, *now[name])
            difference = after - before
            if difference.any():
                differences[name] = difference.cpu()
        return differences
