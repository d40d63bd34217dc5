"""What a person is told about what was wired into a learning node."""

from __future__ import annotations

import logging

from ....e4t_core.methods.e4t.settings import TuningSettings
from .photos import PreparedPhotos
from .request import Request

logger = logging.getLogger(__name__)

BYPASSED = "A LoRA of Load LoRA (Bypass) is not seen by tuning: load it with Load LoRA, or behind E4T Personalize."


def about_request(request: Request, photos: PreparedPhotos) -> list[str]:
    """What may be other than a person expects, each in a sentence."""
    notes = [*request.notes, *([photos.note] if photos.note else [])]
    settings = request.settings
    if photos.masks is not None and not settings.use_mask and settings.steps > 0:
        notes.append("The mask decides the crop only: use_mask is off, so all of the crop is learned.")
    finds = isinstance(settings, TuningSettings) and settings.find_subject
    if photos.masks is None and settings.use_mask and finds and settings.steps > 0:
        notes.append("The subject is found by itself (bright in the preview). Paint or wire in a mask to choose it.")
    if request.model.injections or request.clip.patcher.injections:
        notes.append(BYPASSED)
        logger.warning("E4T: %s", BYPASSED)
    return notes
