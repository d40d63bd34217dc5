"""The small copy of a concept, tuned to predict what the concept predicts, before it is saved compact."""

from __future__ import annotations

import dataclasses
import logging
from statistics import fmean

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ....e4t_core.concept import Concept
from ....e4t_core.methods.compact_fit import CompactFit, CompactFitSettings
from ....e4t_core.run import StepReport
from ..networks.base_model import ComfyUNet, check_supported
from ..networks.text_encoder import ComfyTextEncoder, unload
from ..progress_bar import advance
from .apply import check_fits
from .learn import RunBase, run_on
from .result_store import STORE

logger = logging.getLogger(__name__)

# Steps whose losses say how good the copy has become; the rate is nearly zero by then.
LAST = 4


class _Bar:
    """The bar on the node."""

    def memory(self, plan: str) -> None:
        """Not said: the node's text is about the file."""

    def step(self, report: StepReport) -> None:
        """Advance the bar, and stop where the person has cancelled."""
        advance(report.done, report.total)


def can_fit(concept: Concept) -> bool:
    """Whether a concept has what a fit needs: its photos (in its recipe), and changes that can be made smaller."""
    parts = CompactFit(concept).parts().values()
    return concept.recipe is not None and not concept.to_learn and any(part.rank for part in parts)


def fitted(concept: Concept, model: ModelPatcher, clip: comfy.sd.CLIP) -> tuple[Concept, float]:
    """The concept with small changes, and how much they lose: of its predictions for its photo, as a share of what learning moved.

    Args:
        concept: one that :func:`can_fit` lets pass.
        model, clip: of the base that it was learned on; concepts on them do not count.

    Raises:
        OtherBaseError: they are of another kind.
        InterruptProcessingException: the person cancelled.
        TooLittleMemoryError, torch.OutOfMemoryError: no memory plan fits.
    """
    recipe = concept.recipe
    assert recipe is not None
    check_supported(model)
    with torch.inference_mode(False):
        check_fits(concept, ComfyUNet(model), ComfyTextEncoder(clip))
    unload(model, clip.patcher)
    base = RunBase(model, clip, CompactFit(concept), concept.seed, concept.trigger)
    small = run_on(base, CompactFitSettings(), recipe.photos, _Bar(), STORE)
    lost = fmean(small.losses[-LAST:]) ** 0.5 if small.losses else 1.0
    logger.info("E4T: the compact copy of %s is off by %.3f of what learning changed.", concept.trigger, lost)
    kept = dataclasses.replace(
        small, losses=concept.losses, recipe=recipe, notes=concept.notes, base_name=concept.base_name
    )
    return kept, lost
