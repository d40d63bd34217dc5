"""A concept as a host holds it: in the result store and in every MODEL that draws it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....e4t_core.concept import Concept
from ....e4t_core.loop_settings import SamplingSettings
from ....e4t_core.weight_changes import full_differences, shared_differences, shared_factors


@dataclass(frozen=True, eq=False)
class HeldConcept:
    """A concept with all that a MODEL needs to draw it; shared by every MODEL that does.

    Attributes:
        concept: the core's concept.
        empty: context ``(1, L, D)`` of the empty prompt, by the text encoder it was tuned with.
        shared: what it has in common with all concepts of its domain, on its base, by canonical name.
        differences: its own, by canonical name.
        network: its word predictor as a model that ComfyUI moves and counts together with the UNet. One for as long as
            the network lives: ComfyUI takes a network that outlives its patcher for a memory leak.
    """

    concept: Concept
    empty: Tensor
    shared: Mapping[str, Tensor]
    differences: Mapping[str, Tensor]
    network: ModelPatcher | None = None

    @classmethod
    def of(cls, concept: Concept, empty: Tensor, base: Mapping[str, Tensor]) -> HeldConcept:
        """A concept on the base weights (by canonical name) that it was tuned on."""
        network = None
        if concept.predictor is not None:
            devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
            network = ModelPatcher(concept.predictor.network, *devices)
        with torch.inference_mode(False):
            shared = shared_differences(base, shared_factors(concept.weights))
        return cls(concept, empty, shared, full_differences(concept.weights), network)

    def called(self, trigger: str, sampling: SamplingSettings) -> HeldConcept:
        """The same concept under a trigger, drawn in a way: neither changes what was learned."""
        return dataclasses.replace(self, concept=dataclasses.replace(self.concept, trigger=trigger, sampling=sampling))

    def size(self) -> int:
        """Bytes of RAM."""
        tensors = [self.empty, self.concept.embedding, *self.shared.values(), *self.differences.values()]
        if self.concept.predictor is not None:
            tensors += list(self.concept.predictor.network.parameters())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
