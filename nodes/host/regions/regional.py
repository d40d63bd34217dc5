"""A MODEL and conditionings that draw several concepts, each in a region of its own.

A region is an ordinary conditioning with a mask and a hook. ComfyUI computes conditionings of one hook together, with the
hook's weights in the network, and blends what they predict by their masks. So every sampler, ControlNet, hires fix and batch works,
and outside the regions the picture is the base's. The word of each is refined from what lies in its region, with its weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.hooks
import comfy.sd
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....e4t_core.concept import Concept
from ..learning.apply import held_on
from ..learning.result_store import ResultStore
from ..prompt.concept_clip import with_concept as clip_with_concept
from ..sampling.control_hints import control_of
from ..sampling.held_concept import HeldConcept
from ..sampling.patched_model import held_concepts, patches_by_strength, with_concept
from ..sampling.place import Place, box_of
from .concept_hook import ConceptHook
from .layout import rest

Conditioning = list[list[Any]]


@dataclass(frozen=True, eq=False)
class Region:
    """One concept in a picture.

    Attributes:
        concept: learned.
        prompt: what its region shows, with the trigger where the word stands.
        mask: ``(h, w)`` in 0-1.
    """

    concept: Concept
    prompt: str
    mask: Tensor


def regional(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    positive: Conditioning,
    negative: Conditioning,
    regions: Sequence[Region],
    store: ResultStore,
    background: float = 0.0,
    crop: bool = False,
) -> tuple[ModelPatcher, Conditioning, Conditioning]:
    """MODEL, positive and negative for a sampler.

    Args:
        model, clip: the base; not changed.
        positive, negative: what the rest of the picture shows, and what nothing shows.
        regions: of different concepts.
        store: keeps what is computed for a base.
        background: how much the picture's own prompt counts within regions.
        crop: whether a region is computed as a picture of its own, its mask's box; else it sees all of the picture.

    Raises:
        ValueError: two regions have one concept, or a concept does not fit the base.
    """
    masks = [_within_box(region.mask) if crop else region.mask for region in regions]
    whole = rest(masks, background)
    made_positive = _masked(positive, whole) if whole.max() > 0 else []
    made_negative = _masked(negative, whole) if whole.max() > 0 else []
    for region, mask in zip(regions, masks, strict=True):
        held, hooks = _placed(model, clip, region, store)
        model = with_concept(model, held, store.prompts)
        concept = region.concept
        knowing = clip_with_concept(clip, concept.trigger, concept.fingerprint, concept.embedding, store.prompts)
        # A ControlNet that the whole picture has is the regions', too; the negative of each is the picture's own.
        encoded = [
            [tensor, {**values, **(control_of(positive[0][1]) if positive else {})}]
            for tensor, values in knowing.encode_from_tokens_scheduled(knowing.tokenize(region.prompt))
        ]
        for found, wanted in ((made_positive, encoded), (made_negative, negative)):
            masked = _masked(wanted, mask, box_of(region.mask) if crop else None)
            found += comfy.hooks.set_hooks_for_conditioning(masked, hooks)
    return model, made_positive, made_negative


def _placed(
    model: ModelPatcher, clip: comfy.sd.CLIP, region: Region, store: ResultStore
) -> tuple[HeldConcept, comfy.hooks.HookGroup]:
    """A concept whose weights are in a hook, and not in the MODEL."""
    held = held_on(model, clip, region.concept, store)
    hooks = comfy.hooks.HookGroup()
    # All of the picture has the domain's offset where the MODEL holds a concept of that domain already.
    shared = {} if _has_offset(model, region.concept) else held.shared
    hooks.add(ConceptHook([patches_by_strength(model, part) for part in (shared, held.differences) if part]))
    placed = dataclasses.replace(held.drawn_as(region.concept, 0.0), place=Place(hooks, box_of(region.mask)))
    return placed, hooks


def _has_offset(model: ModelPatcher, concept: Concept) -> bool:
    owner = concept.domain_fingerprint
    return any(
        owner and held.concept.domain_fingerprint == owner and held.shared and held.strength > 0
        for held in held_concepts(model)
    )


def _within_box(mask: Tensor) -> Tensor:
    """A mask without its soft edge beyond its box: what a region does not compute is left to the whole picture."""
    top, left, bottom, right = box_of(mask)
    height, width = mask.shape
    kept = torch.zeros_like(mask)
    rows, columns = slice(round(top * height), round(bottom * height)), slice(round(left * width), round(right * width))
    kept[rows, columns] = mask[rows, columns]
    return kept


def _masked(
    conditioning: Conditioning, mask: Tensor, box: tuple[float, float, float, float] | None = None
) -> Conditioning:
    """Copies that count where a mask says; masks that they have already go on counting.

    Args:
        box: all that is computed of the picture: top, left, bottom, right in shares of it.
    """
    made = []
    for tensor, values in conditioning:
        own = values.get("mask")
        changed = {**values, "mask": mask[None] if own is None else _product(own, mask)}
        if box is not None:
            top, left, bottom, right = box
            changed |= {"area": ("percentage", bottom - top, right - left, top, left), "strength": 1.0}
        made.append([tensor, changed])
    return made


def _product(own: Tensor, mask: Tensor) -> Tensor:
    own = own if own.ndim == 3 else own[None]
    scaled = F.interpolate(mask[None, None], size=own.shape[-2:], mode="bilinear")[0]
    return own * scaled.to(own)
