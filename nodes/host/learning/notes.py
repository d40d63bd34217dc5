"""What a person is told about what was wired into a learning node, and what became of it."""

from __future__ import annotations

import logging

from ....e4t_core.methods.e4t.domain_info import DomainInfo
from ....e4t_core.methods.e4t.settings import TuningSettings
from ..prompt.trigger_notes import about_trigger
from .photos import PreparedPhotos
from .request import Request

logger = logging.getLogger(__name__)

BYPASSED = "A LoRA of Load LoRA (Bypass) is not seen by tuning: load it with Load LoRA, or behind this node."


def about_request(request: Request, photos: PreparedPhotos) -> list[str]:
    """What may be other than a person expects, each in a sentence."""
    notes = [*about_trigger(request.clip, request.trigger), *photos.notes, *request.notes]
    settings = request.settings
    if photos.masks is not None and not settings.use_mask and settings.steps > 0:
        notes.append("The mask decides the crop only: use_mask is off, so all of the crop is learned.")
    finds = isinstance(settings, TuningSettings) and settings.find_subject
    if photos.masks is None and settings.use_mask and finds and settings.steps > 0 and request.loaded is not None:
        notes += about_subject(request.loaded.domain.info)
    if request.model.injections or request.clip.patcher.injections:
        notes.append(BYPASSED)
        logger.warning("E4T: %s", BYPASSED)
    return notes


def about_subject(info: DomainInfo) -> list[str]:
    """How the subject is found where nobody painted a mask."""
    told = "The subject is found by itself (bright in the preview). Paint or wire in a mask to choose it."
    if not info.trained_with_masks:
        told += f" The domain {info.name!r} was not trained with masks, so it may take some background for the subject."
    return [told]


def what_was_made(request: Request, seconds: float) -> str:
    """One sentence: what the trigger stands for now."""
    if request.settings.steps > 0:
        return f"{request.trigger} learned in {seconds:.1f} s."
    first = "the encoder's first answer" if request.loaded is not None else "the word that it starts from"
    return f"{request.trigger} is {first} (0 steps: nothing is tuned), made in {seconds:.1f} s."
