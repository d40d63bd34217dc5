"""A model's weights as stock nodes sample with them: LoRAs included, concepts of ours left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter.lora import LoRAAdapter
from torch import Tensor


class ConceptPatch(tuple):
    """A weight patch of ours, as ComfyUI's ``("diff", (difference,))``: recognizable among LoRAs on a MODEL."""

    __slots__ = ()


class LowRankPatch(LoRAAdapter):
    """A weight patch of ours as thin factors, which ComfyUI multiplies when it loads the model.

    Args:
        up, down: see the core's ``LowRank``; shared, not copied.
    """

    def __init__(self, up: Tensor, down: Tensor) -> None:
        super().__init__(set(), (up, down, None, None, None, None))


def is_ours(patch: Sequence[object]) -> bool:
    """Whether one of a MODEL's patches belongs to a concept."""
    return isinstance(patch[1], ConceptPatch | LowRankPatch)


class EffectiveWeights(Mapping[str, Tensor]):
    """A model's weights with all patches but ours, by native name without ``prefix``; float32, never to be written.

    They are what stock nodes sample with, LoRAs included, whether or not any clone is loaded at the moment. Each is
    computed when it is asked for, on the load device, and none is kept: the untouched base would fill 3.4 GB of a card.
    All are ordinary tensors (not inference tensors), so that autograd may keep them.
    """

    def __init__(self, patcher: ModelPatcher, prefix: str) -> None:
        self._device, self._prefix = patcher.load_device, prefix
        self._patches = {key.removeprefix(prefix): found for key, found in patcher.get_key_patches(prefix).items()}

    def __getitem__(self, name: str) -> Tensor:
        original, *patches = self._patches[name]
        raw, convert = original
        foreign = [patch for patch in patches if not is_ours(patch)]
        with torch.inference_mode(False), torch.no_grad():
            if not foreign:
                weight: Tensor = convert(raw.detach()).to(device=self._device, dtype=torch.float32)
                return weight.clone() if weight.is_inference() else weight
            # Computed and rounded as ComfyUI does when it loads the model.
            patched = convert(raw.detach().to(device=self._device, dtype=torch.float32, copy=True))
            key = self._prefix + name
            return comfy.lora.calculate_weight(foreign, patched, key).to(raw.dtype).float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._patches)

    def __len__(self) -> int:
        return len(self._patches)

    def shape(self, name: str) -> torch.Size:
        """The shape of a weight, without computing it."""
        return self._patches[name][0][0].shape
