"""A concept on a base: the one way from E4T_CONCEPT to a MODEL and a CLIP that draw it."""

from __future__ import annotations

import dataclasses

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ....e4t_core.concept import Concept
from ....e4t_core.layer_contexts import cross_attentions
from ....e4t_core.loop_settings import SamplingSettings
from ....e4t_core.trigger import check_trigger
from ....e4t_core.word_strength import at_word_strength
from ..networks.base_model import ComfyUNet, check_supported
from ..networks.compute_type import compute_type, uses_autocast
from ..networks.text_encoder import ComfyTextEncoder
from ..prompt import concept_clip
from ..sampling import patched_model
from ..sampling.held_concept import HeldConcept
from .content_key import content_key
from .result_store import ResultStore

FAMILY = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}


class OtherBaseError(ValueError):
    """A concept that this base model cannot draw; the message says why."""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How a concept is to be drawn.

    Attributes:
        trigger: what it is called; empty: as it was.
        weights: strength of its weight changes; 0 makes none.
        word: strength of its word; 0 is the coarse word that it started from.
        sampling: as it was, where there is none.
    """

    trigger: str = ""
    weights: float = 1.0
    word: float = 1.0
    sampling: SamplingSettings | None = None


def check_applicable(model: ModelPatcher, clip: comfy.sd.CLIP, trigger: str) -> None:
    """Check, before any work, that a MODEL and a CLIP can hold one more concept.

    Raises:
        ValueError: they are missing or of another kind, or the trigger is taken; one sentence.
    """
    for what, output, given in (("UNet", "MODEL", model), ("text encoder", "CLIP", clip)):
        if given is None:
            raise ValueError(
                f"The checkpoint holds no {what}, so {output} is empty: load one by itself and wire it in."
            )
    check_trigger(trigger)
    concept_clip.check_free(clip, trigger)
    patched_model.check_free(model, trigger)
    check_supported(model)


def applied(
    model: ModelPatcher, clip: comfy.sd.CLIP, concept: Concept, store: ResultStore, drawing: Drawing | None = None
) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """Clones of MODEL and CLIP that draw a concept besides those they hold already.

    Args:
        model, clip: as wired in; not changed.
        concept: learned, so that it can be drawn.
        store: keeps what is computed for a base.
        drawing: none: as the concept says, at full strength.

    Raises:
        OtherBaseError: the concept was made for another kind of base model.
        ValueError: the trigger is taken, or the word's strength cannot be.
    """
    drawing = drawing or Drawing()
    held = held_on(model, clip, concept, store)
    called = dataclasses.replace(
        concept, trigger=drawing.trigger or concept.trigger, sampling=drawing.sampling or concept.sampling
    )
    called = at_word_strength(called, drawing.word)
    new_clip = concept_clip.with_concept(clip, called.trigger, called.fingerprint, called.embedding, store.prompts)
    drawn = held.drawn_as(called, drawing.weights)
    return patched_model.with_concept(model, drawn, store.prompts), new_clip


def held_on(model: ModelPatcher, clip: comfy.sd.CLIP, concept: Concept, store: ResultStore) -> HeldConcept:
    """A concept on a base: one that a MODEL holds already, or made now.

    Raises:
        OtherBaseError: the concept was made for another kind of base model.
    """
    hashes = store.hashes
    base = hashes.weights_key(model)
    # Files can say the same fingerprint of other numbers: the very objects count.
    which = id(concept.weights), id(concept.predictor), id(concept.attention)
    key = content_key(concept.fingerprint, which, base, hashes.weights_key(clip.patcher), clip.layer_idx)
    held = store.held(key)
    if held is None:
        with torch.inference_mode(False):
            device = model.load_device
            unet = ComfyUNet(model, compute_type(device))
            text = ComfyTextEncoder(clip, rounded=device.type != "cpu" and uses_autocast(device))
            check_fits(concept, unet, text)
            with torch.no_grad():
                empty = text.empty().detach().cpu()
            held = HeldConcept.of(concept, empty, unet.parameters(), store.offset(concept, base), base)
        store.remember_held(key, held)
    return held


def check_fits(concept: Concept, unet: ComfyUNet, text: ComfyTextEncoder) -> None:
    """Check that a concept was made for this kind of base model.

    Raises:
        OtherBaseError: it was not; one sentence says what differs and what to do.
    """
    width = concept.embedding.shape[-1]
    name = f"The concept {concept.trigger!r}"
    if width != text.width:
        raise OtherBaseError(
            f"{name} is for {FAMILY.get(width, f'words of width {width}')}, but this CLIP is of"
            f" {FAMILY.get(text.width, f'width {text.width}')}: load a base model of its family."
        )
    if concept.prediction and concept.prediction != unet.prediction:
        raise OtherBaseError(
            f"{name} was learned on a base model that predicts {concept.prediction}, but this one predicts"
            f" {unet.prediction}: load a base model of its kind."
        )
    shapes = unet.shapes
    for change in concept.weights:
        if shapes.get(change.name) != change.shape:
            raise OtherBaseError(
                f"{name} changes {change.name} of the shape {change.shape}, which is {shapes.get(change.name, 'missing')} in this"
                " MODEL: load a base model of the family that it was learned on."
            )
    if concept.attention is not None:
        missing = set(concept.attention.layers) - set(cross_attentions(shapes))
        if missing:
            raise OtherBaseError(
                f"{name} says something of {min(missing)}, which is missing in this MODEL: load a base model of the family"
                " that it was learned on."
            )
    features = unet.feature_width if concept.predictor is None else concept.predictor.feature_width
    if features != unet.feature_width:
        raise OtherBaseError(
            f"{name} reads {features} features of a UNet, but this MODEL gives {unet.feature_width}: load a base model of"
            " the family that it was learned on."
        )


def about_base(model: ModelPatcher, concept: Concept, store: ResultStore) -> tuple[str, ...]:
    """A note where a concept is drawn on another base model than it was learned on."""
    if not concept.base_fingerprint:
        return ()
    with torch.inference_mode(False):
        parameters = ComfyUNet(model).parameters()
        found = store.hashes.base_fingerprint(store.hashes.weights_key(model), parameters)
    if found == concept.base_fingerprint:
        return ()
    note = (
        "was learned on another base model than this one (other weights, or a LoRA more or less): it may be less alike."
    )
    return (f"{concept.trigger} {note}",)
