"""Which of a MODEL's concepts a sampling run draws, where they are to be drawn by their trigger alone (``needs_trigger``).

A concept's weights were tuned on one photo, so that they draw a bit of it whatever is asked for: the domain word turns into the
person, and of two concepts in one MODEL each takes from the other. So a run whose prompts do not name a concept samples with a
MODEL that lacks its weights. That is known before the run, and costs its evaluations nothing: ComfyUI adds other patches to the
weights when the model is loaded, as it does where a LoRA is switched off.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ....e4t_core.weight_changes import Difference, LowRank
from ..networks.effective_weights import LowRankPatch, is_ours
from ..prompt.encoded_prompt import marks_of
from ..prompt.prompt_memory import PromptMemory
from ..prompt.recognition import recognize
from .held_concept import HeldConcept
from .regions import find_regions

logger = logging.getLogger(__name__)

GivenConds = Mapping[str, Sequence[dict[str, Any]] | None]
"""A guider's conditionings before they are prepared, by role."""


def unnamed(
    concepts: Sequence[HeldConcept], conds: GivenConds, model_options: Mapping[str, Any], memory: PromptMemory
) -> tuple[HeldConcept, ...]:
    """The concepts that are to be left out of a run: none of its prompts names them, and there is none that nobody knows.

    Args:
        concepts: that the MODEL holds.
        conds: the guider's.
        model_options: the guider's.
        memory: of encoded prompts.
    """
    waiting = [held for held in concepts if held.concept.sampling.needs_trigger and held.place is None]
    if not waiting or not conds:
        return ()
    try:
        named = _named(conds, model_options, memory)
    except Exception as error:
        # A sampler must not end because of a prompt that is hard to read.
        logger.warning("E4T: the prompts could not be looked through for triggers: %s", error, exc_info=True)
        return ()
    return () if named is None else tuple(held for held in waiting if held.concept.fingerprint not in named)


def _named(conds: GivenConds, model_options: Mapping[str, Any], memory: PromptMemory) -> set[str] | None:
    """Fingerprints of the concepts in a run's prompts; None: there is a prompt that nobody knows."""
    named: set[str] = set()
    # A prompt is known by its own marks alone: what else was encoded before must not decide which picture comes out.
    nothing = PromptMemory()
    for cond in (cond for group in conds.values() for cond in group or ()):
        tensor = cond.get("cross_attn")
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 3:
            return None
        recipe = recognize(tensor, marks_of(cond), nothing)
        if recipe is None or not recipe.complete:
            return None
        named |= {key for source in recipe.sources() for key in source.prompt.concepts_in(source.chunk)}
    for region in find_regions(list(conds.values()), model_options, memory).found:
        named |= {key for prompt in region.recipe.prompts() for key in prompt.concepts}
    return named


@contextmanager
def drawn_without(guider: Any, concepts: Sequence[HeldConcept], left_out: Sequence[HeldConcept]) -> Iterator[None]:
    """Within it, a guider's MODEL lacks the weights of some of its concepts.

    Args:
        guider: ComfyUI's, at its OUTER_SAMPLE wrappers: no weight was patched yet.
        concepts: all that the MODEL holds.
        left_out: some of them.
    """
    whole = getattr(guider, "model_patcher", None)
    if not left_out or not isinstance(whole, ModelPatcher):
        yield
        return
    guider.model_patcher = without_weights(whole, concepts, left_out)
    try:
        yield
    finally:
        guider.model_patcher = whole


def without_weights(
    model: ModelPatcher, concepts: Sequence[HeldConcept], left_out: Sequence[HeldConcept]
) -> ModelPatcher:
    """A clone of a MODEL without the weight changes of some of its concepts; all else stays, in its order.

    A domain's offset stays as it is while a concept of the domain does.
    """
    kept = [held for held in concepts if held not in left_out]
    needed = {held.concept.domain_fingerprint for held in kept if held.strength > 0}
    gone: set[int] = set()
    for held in left_out:
        gone |= _tensors(held.differences)
        if held.concept.domain_fingerprint not in needed:
            gone |= _tensors(held.shared)
    lighter = model.clone()
    patches = {
        name: [patch for patch in found if not (is_ours(patch) and (not kept or _tensor(patch) in gone))]
        for name, found in lighter.patches.items()
    }
    lighter.patches = {name: found for name, found in patches.items() if found}
    # ComfyUI tells by it whether the weights are patched as they should be: the same name whenever the same are left out.
    names = ",".join(sorted(held.concept.fingerprint for held in left_out))
    lighter.patches_uuid = uuid.uuid5(model.patches_uuid, names)
    return lighter


def _tensors(differences: Mapping[str, Difference]) -> set[int]:
    return {id(kept.up if isinstance(kept, LowRank) else kept.values) for kept in differences.values()}


def _tensor(patch: Sequence[Any]) -> int:
    """Which tensor a patch of ours adds."""
    made = patch[1]
    return id(made.weights[0] if isinstance(made, LowRankPatch) else made[1][0])
