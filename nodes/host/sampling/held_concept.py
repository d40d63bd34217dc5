"""A concept as a host holds it: in the result store and in every MODEL that draws it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....e4t_core.concept import Concept
from ....e4t_core.loop_settings import SamplingSettings
from ....e4t_core.stored_difference import StoredDifference
from ....e4t_core.weight_changes import full_differences, shared_differences, shared_factors


@dataclass(frozen=True, eq=False)
class HeldConcept:
    """A concept with all that a MODEL needs to draw it; shared by every MODEL that does.

    Attributes:
        concept: the core's concept.
        empty: context ``(1, L, D)`` of the empty prompt, by the text encoder it was tuned with.
        shared: what it has in common with all concepts of its domain, on its base, by canonical name. Concepts that are
            kept together share these tensors too.
        differences: its own, by canonical name; the concept's tensors, not copies.
        network: its word predictor as a model that ComfyUI moves and counts together with the UNet. One for as long as
            the network lives: ComfyUI takes a network that outlives its patcher for a memory leak.
    """

    concept: Concept
    empty: Tensor
    shared: Mapping[str, StoredDifference]
    differences: Mapping[str, StoredDifference]
    network: ModelPatcher | None = None

    @classmethod
    def of(
        cls,
        concept: Concept,
        empty: Tensor,
        base: Mapping[str, Tensor],
        shared: Mapping[str, StoredDifference] | None = None,
    ) -> HeldConcept:
        """A concept on the base weights (by canonical name) that it was tuned on.

        Args:
            concept: the core's.
            empty: context of the empty prompt.
            base: is asked for one weight at a time.
            shared: of another concept of the same domain on the same base; computed where there is none.
        """
        network = None
        if concept.predictor is not None:
            devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
            network = ModelPatcher(concept.predictor.network, *devices)
        if shared is None:
            with torch.inference_mode(False):
                shared = shared_differences(base, shared_factors(concept.weights))
        return cls(concept, empty, shared, full_differences(concept.weights), network)

    def called(self, trigger: str, sampling: SamplingSettings) -> HeldConcept:
        """The same concept under a trigger, drawn in a way: neither changes what was learned."""
        return dataclasses.replace(self, concept=dataclasses.replace(self.concept, trigger=trigger, sampling=sampling))

    def size(self) -> int:
        """Bytes of RAM, as if no other concept held any of them."""
        return bytes_held(self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All that it holds."""
        yield self.empty
        yield self.concept.embedding
        for stored in (*self.shared.values(), *self.differences.values()):
            yield stored.values
        for p, q in shared_factors(self.concept.weights).values():
            yield p
            yield q
        if self.concept.predictor is not None:
            yield from self.concept.predictor.network.parameters()
            yield from self.concept.predictor.network.buffers()


def bytes_held(tensors: Iterable[Tensor]) -> int:
    """Bytes of memory behind tensors; what several of them share counts once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({(storage.device, storage.data_ptr()): storage.nbytes() for storage in storages}.values())
