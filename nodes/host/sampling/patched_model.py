"""A MODEL that draws concepts: their weights as additive patches, their words by refinement.

It holds each domain's offset once, ``W0 * P Q^T``, and each concept's own difference from "base + domain offset". Patches
are added by ComfyUI when it loads the model, so they live with LoRAs before and after, low memory and unloading.
"""

from __future__ import annotations

import logging
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ....e4t_core.attention_changes import AttentionChange
from ....e4t_core.canonical_names import canonical_names
from ....e4t_core.stored_difference import StoredDifference, energy_lost
from ....e4t_core.weight_changes import Difference, LowRank
from ..networks.base_model import PREFIX
from ..networks.effective_weights import ConceptPatch, LowRankPatch, is_ours
from ..prompt.prompt_memory import PromptMemory
from .held_concept import HeldConcept
from .pieces import KEY
from .refinement import Refinement

logger = logging.getLogger(__name__)

# A concept that keeps less than half of its differences' energy is not the one that was tuned.
LOST = 0.5


class WordTakenError(ValueError):
    """A trigger that already stands for another concept in this MODEL."""


def held_concepts(model: ModelPatcher) -> tuple[HeldConcept, ...]:
    """The concepts a MODEL holds, in the order they were added."""
    wrappers = model.get_wrappers(WrappersMP.CALC_COND_BATCH, KEY)
    return wrappers[0].concepts if wrappers else ()


def without_concepts(model: ModelPatcher) -> ModelPatcher:
    """A clone of a MODEL that holds no concept; LoRAs and all else stay."""
    plain = model.clone()
    kept = {name: [p for p in found if not is_ours(p)] for name, found in plain.patches.items()}
    plain.patches = {name: found for name, found in kept.items() if found}
    # ComfyUI tells clones with other patches apart by it.
    plain.patches_uuid = uuid.uuid4()
    for kind in (WrappersMP.CALC_COND_BATCH, WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE):
        plain.remove_wrappers_with_key(kind, KEY)
    plain.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, KEY)
    plain.remove_additional_models(KEY)
    return plain


def with_concept(model: ModelPatcher, added: HeldConcept, memory: PromptMemory) -> ModelPatcher:
    """A clone of a MODEL that also holds one more concept, its weight changes at its strength.

    Args:
        model: stock, or with concepts; not changed.
        added: what to add.
        memory: of encoded prompts.

    Raises:
        WordTakenError: it holds this concept already, at another strength or as its word alone.
    """
    new = model.clone()
    concept, held = added.concept, held_concepts(model)
    same = next((h for h in held if h.concept.fingerprint == concept.fingerprint), None)
    if same is not None:
        if not _changes_alike(same, added):
            raise WordTakenError(
                f"This MODEL holds the concept of {concept.trigger!r} already, as {same.concept.trigger!r}, and at another"
                " strength or as its word alone: wire in the MODEL from before to draw it as here."
            )
        # Its weights are there; how it is called and sampled is what was said last.
        held = tuple(added if h is same else h for h in held)
    else:
        for differences, strength in _missing_offset(held, added):
            _patch(new, differences, strength)
        _patch(new, added.differences, added.strength)
        _warn_if_lost(new, added.differences if added.strength else {})
        if added.network is not None:
            new.set_additional_models(KEY, [*new.get_additional_models_with_key(KEY), added.network])
        held = (*held, added)
    refinement = Refinement(held, memory)
    new.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, KEY)
    new.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, refinement)
    new.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    new.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, refinement.begin)
    new.remove_wrappers_with_key(WrappersMP.PREDICT_NOISE, KEY)
    new.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, refinement.predict_noise)
    new.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, KEY)
    new.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEY, refinement.forget_run)
    return new


def _changes_alike(held: HeldConcept, added: HeldConcept) -> bool:
    """Whether two of one fingerprint change weights and word alike: in a MODEL, both are one under all of its triggers."""
    return (
        held.strength == added.strength
        and held.shared.keys() == added.shared.keys()
        and held.differences.keys() == added.differences.keys()
        and (held.concept.predictor is None) == (added.concept.predictor is None)
        and torch.equal(held.concept.embedding, added.concept.embedding)
        and _same_tensors(held.concept.attention, added.concept.attention)
    )


def _same_tensors(one: AttentionChange | None, other: AttentionChange | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))


def check_free(model: ModelPatcher, trigger: str) -> None:
    """Check, before any work, that a trigger does not stand for a concept of this MODEL yet.

    Raises:
        WordTakenError: it does.
    """
    if any(held.concept.trigger == trigger for held in held_concepts(model)):
        raise WordTakenError(
            f"The trigger {trigger!r} already stands for another concept in this MODEL: give this one another, or wire in"
            " the MODEL from before."
        )


def _missing_offset(
    held: Sequence[HeldConcept], added: HeldConcept
) -> Iterator[tuple[Mapping[str, StoredDifference], float]]:
    """What a MODEL lacks of the domain offset that a concept was tuned on, as differences with a strength.

    A MODEL holds a domain's offset once, as strongly as the strongest of its concepts. With a LoRA between two concepts the
    second one's base is another: what it lacks then is the difference of the two offsets, ``L * P Q^T``.
    """
    owner = added.concept.domain_fingerprint
    # A concept of which the word alone was kept brings no offset, and needs none.
    before = [h for h in held if owner and h.concept.domain_fingerprint == owner and h.shared]
    if not added.shared:
        return
    if not before:
        yield added.shared, added.strength
        return
    strongest = max(h.strength for h in before)
    if added.strength > strongest:
        yield added.shared, added.strength - strongest
    if before[-1].base == added.base:
        return
    old, new = before[-1].shared, added.shared
    missing = {}
    with torch.inference_mode(False), torch.no_grad():
        for name in (*new, *(old.keys() - new)):
            difference = _value(new, name) - _value(old, name)
            if difference.any():
                missing[name] = StoredDifference.of(difference)
    yield missing, strongest


def _value(differences: Mapping[str, StoredDifference], name: str) -> Tensor:
    return differences[name].value() if name in differences else torch.zeros(())


def _patch(model: ModelPatcher, differences: Mapping[str, Difference], strength: float) -> None:
    """Add differences by canonical name; the stored tensors are shared, not copied.

    ComfyUI brings a difference into the type that it adds in, then multiplies it by the strength (comfy/lora.py). A scale in
    the strength is a power of two: it costs no memory, and rounds no more than the strength itself does.
    """
    if not differences or strength == 0:
        return
    # One call for all of a scale: each goes through all weights of the model.
    for scale, patches in patches_by_strength(model, differences).items():
        model.add_patches(patches, strength * scale)


def patches_by_strength(
    model: ModelPatcher, differences: Mapping[str, Difference]
) -> dict[float, dict[str, ConceptPatch | LowRankPatch]]:
    """Differences by canonical name as a MODEL's patches by its own keys, for each strength that they are added with."""
    names = _native_names(model)
    by_scale: dict[float, dict[str, ConceptPatch | LowRankPatch]] = defaultdict(dict)
    for name, kept in differences.items():
        key = f"{PREFIX}{names[name]}"
        if isinstance(kept, LowRank):
            by_scale[1.0][key] = LowRankPatch(kept.up, kept.down)
        else:
            by_scale[kept.scale][key] = ConceptPatch(("diff", (kept.values,)))
    return by_scale


def lost_share(weight: Tensor, difference: Tensor) -> float:
    """Share of a difference's energy that rounding to the weight's float type loses: 0 none, 1 all, or more."""
    wanted = difference.float().cpu()
    weight = weight.detach().cpu()
    return energy_lost(wanted, (weight.float() + wanted).to(weight.dtype).float() - weight.float())


def _warn_if_lost(model: ModelPatcher, differences: Mapping[str, Difference]) -> None:
    """Say so where the weights' float type is too coarse for what was learned (bfloat16, most of all)."""
    if not differences or model.model_dtype() == torch.float32:
        return
    names = _native_names(model)
    weights = model.model_state_dict(PREFIX)
    # Eight matrices tell as much as all of them.
    sample = sorted(differences, key=lambda name: -weights[PREFIX + names[name]].numel())[:8]
    lost = sum(lost_share(weights[PREFIX + names[name]], differences[name].value()) for name in sample) / len(sample)
    if lost > LOST:
        finer = "fp32 (start ComfyUI with --fp32-unet)"
        if model.model_dtype() != torch.float16:
            finer = "fp16 or fp32 (e.g. start ComfyUI with --fp16-unet or --fp32-unet)"
        logger.warning(
            "E4T: this MODEL's weights are stored as %s, which is too coarse for %.0f %% of what was learned: load it in"
            " %s.",
            str(model.model_dtype()).removeprefix("torch."),
            100 * min(lost, 1.0),
            finer,
        )


def _native_names(model: ModelPatcher) -> dict[str, str]:
    """Canonical name -> native name, without prefix."""
    native = [key.removeprefix(PREFIX) for key in model.model_state_dict(PREFIX)]
    return {canonical: name for name, canonical in canonical_names(native).items()}
