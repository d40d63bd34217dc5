"""DreamBooth (Ruiz et al. 2022, arXiv 2208.12242): all of the UNet learns the photos under a rare word before the class word.

Prompts say "a photo of sks face" (the paper: "a [V] [class noun]"), and prior preservation keeps the class (``prior.py``). For
Stable Diffusion the paper states a rate of 5e-6, about 1,000 steps and 3 to 5 photos, and nothing of the
optimizer. We: AdamW as the field has it; templates in place of the one prompt; the text encoder stays as it is. The identifier
is no word of the paper's: it is the one that people use, and can be changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..identifier import IdentifierRun, IdentifierSettings
from ..memory_need import Trained
from ..memory_plan import MemoryPlan
from ..photos import Photos
from ..prior import PriorSibling
from ..run import BaseModel
from ..settings import setting
from ..trained_weight import TrainedWeight
from ..unet import UNet
from ..weight_changes import WeightChange
from ..whole_unet import learned_differences, whole_unet


@dataclass(frozen=True)
class DreamBoothSettings(IdentifierSettings):
    """Settings of DreamBooth.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    steps: int = setting(800, "Optimizer steps. More learn more, and prompts are obeyed less.", least=0, most=100_000)
    learning_rate: float = setting(
        5e-6, "Every step moves every number of the UNet by about this much.", least=0, most=1, step=1e-6
    )
    batch: int = setting(2, "Noise levels of the photos per step.", least=1, most=256, unit="samples")
    rate_decay: bool = setting(
        False, "Lowers the learning rate to zero over the second half of the steps.", advanced=True
    )


class DreamBoothRun(IdentifierRun):
    """A run that trains all weights of the UNet."""

    def __init__(
        self,
        method: PriorSibling,
        base: BaseModel,
        photos: Photos,
        settings: Any,
        seed: int,
        trigger: str,
        plan: MemoryPlan,
    ) -> None:
        super().__init__(method, base, photos, settings, seed, trigger, plan)
        self._weights = whole_unet(self.effective, plan.state_device(self.device))

    def weights(self) -> Mapping[str, TrainedWeight]:
        return self._weights

    def changes(self) -> tuple[WeightChange, ...]:
        return tuple(learned_differences(self.effective, self._weights))


class DreamBooth(PriorSibling):
    """The method."""

    name = "dreambooth"
    title = "DreamBooth"
    Settings = DreamBoothSettings
    Run = DreamBoothRun

    def trained(self, settings: DreamBoothSettings, unet: UNet) -> Trained:
        return Trained(unet=True, passes=self.passes_of(settings))
