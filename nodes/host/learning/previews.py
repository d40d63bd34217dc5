"""What a run would draw now, as a small picture for the browser: seldom enough not to be noticed."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import comfy.model_management
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....e4t_core.preview import PASSES
from ....e4t_core.run import StepReport

logger = logging.getLogger(__name__)

AUTO, NEVER = 0, -1
# Of the time of learning that previews may take.
SHARE = 0.03
# Passes forward that a sample's step is worth: one forward, two backward, and the optimizer.
STEP_PASSES = 3.5
PREVIEW = 128


@dataclass
class Previews:
    """When a run is looked at, and how it is made a picture.

    Attributes:
        every: steps between two; AUTO: as many as keep them below 3 % of the time; NEVER.
        batch: samples of a step.
        colors: ``(channels, 3)``, what each latent channel adds to red, green and blue; none: there are no previews.
        bias: ``(3,)`` or none.
    """

    every: int
    batch: int
    colors: Sequence[Sequence[float]] | None
    bias: Sequence[float] | None = None

    def due(self, report: StepReport) -> bool:
        """Whether a preview is due after this report."""
        if self.every == NEVER or self.colors is None or report.draw is None:
            return False
        every = self.every or max(1, math.ceil(PASSES / (STEP_PASSES * self.batch) / SHARE))
        return report.step % every == 0

    def picture(self, report: StepReport) -> Image.Image | None:
        """A preview; none, and no other one in this run, where it cannot be made: learning goes on."""
        assert report.draw is not None
        try:
            return self._seen(report.draw())
        except Exception as error:  # noqa: BLE001 - a preview must not end a run
            self.every = NEVER
            if comfy.model_management.is_oom(error):
                comfy.model_management.soft_empty_cache()
            logger.warning("E4T: no previews of what is learned: %s", error)
            return None

    def _seen(self, latent: Tensor) -> Image.Image:
        """A latent ``(1, 4, h, w)`` in rough colors, without the VAE, which may not fit beside the run."""
        latent = latent[0].float().cpu()
        colors = torch.tensor(self.colors, dtype=torch.float32)
        seen = latent.movedim(0, -1) @ colors
        if self.bias is not None:
            seen = seen + torch.tensor(self.bias)
        pixels = ((seen + 1) / 2).nan_to_num(0).clamp(0, 1).mul(255).round().byte().numpy()
        return Image.fromarray(np.ascontiguousarray(pixels)).resize((PREVIEW, PREVIEW), Image.Resampling.BICUBIC)
