"""A concept as a host holds it: in the result store and in every MODEL that draws it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ....e4t_core.concept import Concept, WordPredictor
from ....e4t_core.stored_difference import StoredDifference
from ....e4t_core.weight_changes import Difference, LowRank, own_differences, shared_differences, shared_factors
from .place import Place


@dataclass(frozen=True, eq=False)
class HeldConcept:
    """A concept with all that a MODEL needs to draw it; shared by every MODEL that does.

    Attributes:
        concept: the core's concept.
        empty: context ``(1, L, D)`` of the empty prompt, by the text encoder it was tuned with.
        shared: what it has in common with all concepts of its domain, on its base, by canonical name. Concepts that are
            kept together share these tensors too.
        differences: its own, by canonical name; the concept's tensors, not copies.
        network: its word predictor as a model that ComfyUI moves and counts together with the UNet.
        base: content hash of the base weights that it is made for, by which concepts on one base are told.
        strength: of its weight changes in the MODEL that holds it.
        place: of one that has a region of its own in the picture: there alone its weights act.
        prepared: what :meth:`of` made, where this is that under another name; it lives as long as this does.
    """

    concept: Concept
    empty: Tensor
    shared: Mapping[str, StoredDifference]
    differences: Mapping[str, Difference]
    network: ModelPatcher | None = None
    base: str = ""
    strength: float = 1.0
    place: Place | None = None
    prepared: HeldConcept | None = None

    @classmethod
    def of(
        cls,
        concept: Concept,
        empty: Tensor,
        base: Mapping[str, Tensor],
        shared: Mapping[str, StoredDifference] | None = None,
        key: str = "",
    ) -> HeldConcept:
        """A concept on the base weights (by canonical name) that it is to be drawn with.

        Args:
            concept: the core's.
            empty: context of the empty prompt.
            base: is asked for one weight at a time.
            shared: of another concept of the same domain on the same base; computed where there is none.
            key: content hash of the base weights; empty: those that it was tuned on.
        """
        network = None
        if concept.predictor is not None:
            devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
            network = ModelPatcher(_twin(concept.predictor.network), *devices)
        if shared is None:
            with torch.inference_mode(False):
                shared = shared_differences(base, shared_factors(concept.weights))
        key = key or concept.base_fingerprint
        return cls(concept, empty, shared, own_differences(concept.weights), network, key)

    def drawn_as(self, concept: Concept, strength: float = 1.0) -> HeldConcept:
        """The same with what says how it is drawn: trigger, sampling and strengths change nothing that was learned."""
        return dataclasses.replace(self, concept=concept, strength=strength, prepared=self.prepared or self)

    @property
    def predictor(self) -> WordPredictor:
        """What predicts its word anew; to be asked for of concepts that are refined only."""
        assert self.concept.predictor is not None
        return self.concept.predictor

    def size(self) -> int:
        """Bytes of RAM, as if no other concept held any of them."""
        return bytes_held(self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All that it holds."""
        yield self.empty
        for stored in self.shared.values():
            yield stored.values
        yield from tensors_of(self.concept)


def tensors_of(concept: Concept) -> Iterator[Tensor]:
    """All that a concept holds; not what it shares with a domain that is loaded."""
    yield concept.embedding
    if concept.attention is not None:
        yield from concept.attention.tensors()
    for kept in own_differences(concept.weights).values():
        if isinstance(kept, LowRank):
            yield kept.up
            yield kept.down
        else:
            yield kept.values
    for p, q in shared_factors(concept.weights).values():
        yield p
        yield q
    if concept.predictor is not None:
        yield from concept.predictor.network.parameters()
        yield from concept.predictor.network.buffers()
    if concept.recipe is not None:
        photos = concept.recipe.photos
        yield from (part for part in (photos.latents, photos.clip_features, photos.masks) if part is not None)


def _twin(network: nn.Module) -> nn.Module:
    """A module over the same parameters: ComfyUI takes a module that outlives its patcher for a memory leak, and a concept does.

    What moves one of them moves both.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)


def bytes_held(tensors: Iterable[Tensor]) -> int:
    """Bytes of memory behind tensors; what several of them share counts once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({(storage.device, storage.data_ptr()): storage.nbytes() for storage in storages}.values())
