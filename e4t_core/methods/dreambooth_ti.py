"""DreamBooth and Textual Inversion at once: the UNet and the word learn the photos together, each at its rate.

A baseline of the E4T paper (Gal et al. 2023, arXiv 2302.12228, section 4). It says no more than that both are tuned; so it is
DreamBooth (``dreambooth.py``), with a word that trains, begun as the class word's embedding, in the identifier's place: "a photo
of v* face". The rates are the two methods' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..memory_need import Trained
from ..memory_plan import MemoryPlan
from ..photos import Photos
from ..prior import PriorRun, PriorSettings, PriorSibling
from ..run import BaseModel
from ..settings import setting
from ..trained_weight import TrainedWeight
from ..unet import UNet
from ..weight_changes import WeightChange
from ..whole_unet import learned_differences, whole_unet


@dataclass(frozen=True)
class DreamBoothTISettings(PriorSettings):
    """Settings of DreamBooth with Textual Inversion.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    steps: int = setting(800, "Optimizer steps. More learn more, and prompts are obeyed less.", least=0, most=100_000)
    learning_rate: float = setting(
        5e-6, "Every step moves every number of the UNet by about this much.", least=0, most=1, step=1e-6
    )
    word_rate: float = setting(
        5e-3,
        "Every step moves every number of the word by about this much.",
        above=0,
        most=1,
        step=1e-4,
    )
    batch: int = setting(2, "Noise levels of the photos per step.", least=1, most=256, unit="samples")
    vectors: int = setting(1, "How many tokens are learned before the class word.", least=1, most=3, advanced=True)


class DreamBoothTIRun(PriorRun):
    """A run that trains all weights of the UNet, and the tokens before the class word."""

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
        self.embedding = nn.Parameter(self.class_row.expand(settings.vectors, -1).clone())

    def word(self) -> Tensor:
        return torch.cat([self.embedding, self.class_row[None]])

    def groups(self) -> list[dict[str, Any]]:
        # The word has a length of its own, to which nothing pulls it back.
        return [{"params": [self.embedding], "lr": self.settings.word_rate, "weight_decay": 0.0}]

    def weights(self) -> Mapping[str, TrainedWeight]:
        return self._weights

    def changes(self) -> tuple[WeightChange, ...]:
        return tuple(learned_differences(self.effective, self._weights))


class DreamBoothTI(PriorSibling):
    """The method."""

    name = "dreambooth_ti"
    title = "DreamBooth + Textual Inversion"
    Settings = DreamBoothTISettings
    Run = DreamBoothTIRun

    def trained(self, settings: DreamBoothTISettings, unet: UNet) -> Trained:
        return Trained(unet=True, passes=self.passes_of(settings))
