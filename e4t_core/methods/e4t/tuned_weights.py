"""The weights of a UNet while it is tuned, without touching the UNet: ``W = (W0 + d) * (1 + Delta)``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .weight_offsets import Factors, Offsets


class TunedWeights:
    """Trainable float32 copies where something trains, the base's own tensors everywhere else.

    With ``train_unet`` a copy holds ``W0 + d`` for every parameter (copies, not differences: they need no sum in the
    graph). Otherwise nothing but the offsets is held; only inference tensors (ComfyUI's, made under
    ``torch.inference_mode``) are cloned, since autograd refuses to save them for the backward pass.

    Args:
        base: the effective base weights by canonical name; never written to.
        offsets: a private copy, trainable or not; its device is that of the UNet.
        train_offsets: whether Delta trains.
        train_unet: whether all UNet weights train.
        clip_features: ``(1, L, C)`` of the concept, for offsets that depend on it.
        unet: weights ``W0 + d`` that were tuned elsewhere, by canonical name; they do not train.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        offsets: Offsets,
        train_offsets: bool,
        train_unet: bool,
        clip_features: Tensor | None = None,
        unet: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._base = base
        self._offsets, self._clip_features = offsets, clip_features
        self.parameters: list[nn.Parameter] = []
        self._held: dict[str, Tensor] = {}
        given = unet or {}
        for name, weight in self._base.items():
            if name in given:
                self._held[name] = given[name]
            elif train_unet and weight.is_floating_point():
                copy = nn.Parameter(weight.detach().to(torch.float32, copy=True))
                self._held[name] = copy
                self.parameters.append(copy)
            elif weight.is_inference():
                self._held[name] = weight.clone()
        if train_offsets:
            self.parameters.extend(offsets.parameters())
        self._fixed = None if train_offsets else offsets.fixed(clip_features)
        self._trains = bool(self.parameters)
        self._as_pretrained = not self._trains and not given
        self._constant: dict[str, Tensor] | None = None
        # What the model that draws the concept holds already, for all concepts of the domain.
        self._shared = Factors(offsets.shared())

    def effective(self) -> dict[str, Tensor]:
        """The weights to lend to ``UNet.using``, differentiable; those left out are the base's."""
        if self._constant is not None:
            return self._constant
        weights = dict(self._held)
        bare = {name: self._held.get(name, self._base[name]).float() for name in self._offsets.names}
        if self._fixed is None:
            weights |= self._offsets.apply_all(bare, self._clip_features)
        else:
            weights |= {name: self._fixed.apply(name, weight) for name, weight in bare.items()}
        if not self._trains:
            # Nothing can change: the products are made once for all micro-batches.
            self._constant = weights
        return weights

    @torch.no_grad()
    def differences(self) -> dict[str, Tensor]:
        """Tuned weight - (base + domain offset), float32 on the CPU; only tensors that changed."""
        differences: dict[str, Tensor] = {}
        if self._as_pretrained and self._shared.pairs:
            return differences
        now = self._offsets.fixed(self._clip_features)
        offset = set(self._offsets.names)
        for name, base in self._base.items():
            if not base.is_floating_point():
                continue
            before, after = base.float(), self._held.get(name, base).float()
            if name in self._shared.pairs:
                before = self._shared.apply(name, before)
            if name in offset:
                after = now.apply(name, after)
            difference = after - before
            if difference.any():
                differences[name] = difference.cpu()
        return differences
