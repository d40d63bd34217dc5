"""A MODEL that draws concepts: their weights as additive patches, their words by refinement.

It holds each domain's offset once, ``W0 * P Qᵀ``, and each concept's own difference from "base + domain offset". Patches
are added by ComfyUI when it loads the model, so they live with LoRAs before and after, low memory and unloading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...e4t_core.canonical_names import canonical_names
from ...e4t_core.concept import Concept
from .base_model import PREFIX, ConceptPatch
from .prompt_memory import PromptMemory
from .refinement import HeldConcept, Refinement

KEY = "e4t"


@dataclass(frozen=True, eq=False)
class ConceptParts:
    """A tuned concept with all that a MODEL needs to hold it; shared by every MODEL that does.

    Attributes:
        concept: the core's concept.
        empty: context ``(1, L, D)`` of the empty prompt.
        domain_offset: ``W0 * P Qᵀ`` of the domain on this concept's base, by canonical name.
    """

    concept: Concept
    empty: Tensor
    domain_offset: dict[str, Tensor]

    def size(self) -> int:
        """Bytes of RAM."""
        tensors = [self.empty, *self.domain_offset.values(), *self.concept.weight_differences.values()]
        tensors += list(self.concept.encoder.parameters())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def domain_offset(weights: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """``W0 * P Qᵀ``, ``(M, N)`` float32 on the CPU by canonical name; zero matrices are left out.

    Args:
        weights: effective base weights by canonical name.
        factors: P ``(M, 3)`` and Q ``(N, 3)`` by canonical name.
    """
    offsets = {}
    with torch.inference_mode(False), torch.no_grad():
        for name, (p, q) in factors.items():
            weight = weights[name].float()
            offset = weight * (p.to(weight) @ q.to(weight).T)
            if offset.any():
                offsets[name] = offset.cpu()
    return offsets


def held_concepts(model: ModelPatcher) -> tuple[HeldConcept, ...]:
    """The concepts a MODEL holds, in the order they were added."""
    wrappers = model.get_wrappers(WrappersMP.CALC_COND_BATCH, KEY)
    return wrappers[0].concepts if wrappers else ()


def with_concept(model: ModelPatcher, parts: ConceptParts, memory: PromptMemory, strength: float = 1.0) -> ModelPatcher:
    """A clone of a MODEL that also holds one more concept; at strength 0 it is a plain clone, which draws none.

    Args:
        model: stock, or with concepts; not changed.
        parts: what to add.
        memory: of encoded prompts.
        strength: factor of the weight changes; the word follows its encoder at any strength but 0.
    """
    new = model.clone()
    held = held_concepts(model)
    concept = parts.concept
    if strength == 0 or any(other.concept.fingerprint == concept.fingerprint for other in held):
        return new
    if all(other.concept.domain_fingerprint != concept.domain_fingerprint for other in held):
        _patch(new, parts.domain_offset, strength)
    _patch(new, concept.weight_differences, strength)
    held = (*held, HeldConcept(concept, parts.empty))
    refinement = Refinement(held, memory)
    new.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, KEY)
    new.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, refinement)
    new.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, KEY)
    new.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEY, refinement.forget_run)
    new.set_additional_models(KEY, [*new.get_additional_models_with_key(KEY), _encoder_patcher(concept, new)])
    return new


def _patch(model: ModelPatcher, differences: Mapping[str, Tensor], strength: float) -> None:
    """Add differences by canonical name; the tensors are shared, not copied."""
    if not differences:
        return
    native = [key.removeprefix(PREFIX) for key in model.model_state_dict(PREFIX)]
    names = {canonical: name for name, canonical in canonical_names(native).items()}
    patches = {f"{PREFIX}{names[name]}": ConceptPatch(("diff", (value,))) for name, value in differences.items()}
    model.add_patches(patches, strength)


def _encoder_patcher(concept: Concept, model: ModelPatcher) -> ModelPatcher:
    """The concept encoder as a model that ComfyUI moves and counts together with the UNet."""
    return ModelPatcher(
        concept.encoder, load_device=model.load_device, offload_device=comfy.model_management.unet_offload_device()
    )
