"""The weights of a UNet while E4T tunes it, without touching the UNet: ``W = (W0 + d) * (1 + Delta)``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ...trained_weight import TrainedWeight
from ...weight_changes import Full
from .weight_offsets import Factors, FixedOffsets, Offsets


class TunedWeights:
    """What a run lends to the UNet, and how far it has moved.

    With ``train_unet`` a master holds ``W0 + d`` for every parameter (masters, not differences: they need no sum in the
    graph). Otherwise only the attention projections are lent.

    Args:
        base: the effective base weights by canonical name; never written to.
        offsets: a private copy, on the device where masters live; its parameters train if they require gradients.
        train_unet: whether all UNet weights train.
        clip_features: ``(1, L, C)`` of the concept, for offsets that depend on it; any device.
        unet: weights ``W0 + d`` that were tuned elsewhere, by canonical name; they do not train.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        offsets: Offsets,
        train_unet: bool,
        clip_features: Tensor | None = None,
        unet: Mapping[str, Tensor] | None = None,
    ) -> None:
        parameter = next(offsets.parameters())
        self._base, self._offsets, self._device = base, offsets, parameter.device
        self._clip_features = None if clip_features is None else clip_features.to(self._device)
        train_offsets = parameter.requires_grad
        self._moves_offsets = train_offsets
        self._moved = set(unet or ())
        fixed = None if train_offsets else offsets.fixed(self._clip_features)
        # What the model that draws the concept holds already, for all concepts of the domain.
        self._shared = Factors(offsets.shared())
        self.weights: dict[str, TrainedWeight] = {}
        """By canonical name; those left out are the base's."""
        for name in base:
            if unet is not None and name in unet:
                weight = self._constant(unet[name])
            elif train_unet:
                weight = TrainedWeight.plain(base[name], self._device)
                self._moved.add(name)
            elif name in offsets.shapes:
                weight = self._constant(base[name])
            else:
                continue
            if name in offsets.shapes:
                weight = _scaled(name, weight, offsets, fixed, self._clip_features)
            self.weights[name] = weight

    def _constant(self, value: Tensor) -> TrainedWeight:
        held = value.detach().to(self._device, torch.float32)
        # Autograd refuses to keep what was made in inference mode.
        held = held.clone() if held.is_inference() else held
        return TrainedWeight.fixed(lambda: held)

    @torch.no_grad()
    def differences(self) -> Iterator[Full]:
        """Tuned weight - (base + domain offset), one after the other; only tensors that changed."""
        for name, weight in self.weights.items():
            if name not in self._moved and not self._moves_offsets and name in self._shared.pairs:
                continue  # as it was pre-trained
            after = weight.make()
            before = self._base[name].to(after.device, torch.float32)
            if name in self._shared.pairs:
                before = self._shared.apply(name, before)
            difference = after - before
            if difference.any():
                yield Full.of(name, difference)


def _scaled(
    name: str, weight: TrainedWeight, offsets: Offsets, fixed: FixedOffsets | None, clip_features: Tensor | None
) -> TrainedWeight:
    """A weight times ``1 + Delta``; a function of its own, so that no run is part of a circle and ends when it is left."""
    if fixed is not None:
        return TrainedWeight(weight.parameters, lambda: fixed.apply(name, weight.make()))
    parameters = (*weight.parameters, *offsets.parameters_of(name))
    return TrainedWeight(parameters, lambda: offsets.applied(name, weight.make(), clip_features))
