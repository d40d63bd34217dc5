"""The plain UNet step, as DreamBooth makes it, through the product's own training loop: what the others are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from e4t_core.concept import Concept
from e4t_core.diffusion import DiffusionSample, denoising_errors
from e4t_core.loop_settings import LoopSettings
from e4t_core.memory_need import Trained
from e4t_core.memory_plan import MemoryPlan
from e4t_core.photos import Photos
from e4t_core.run import BaseModel, OnPass, Phase
from e4t_core.trained_weight import TrainedWeight
from e4t_core.unet import UNet


class PlainUNet:
    """All of the UNet's weights learn a photo under the empty prompt: the least that tuning a whole UNet takes."""

    name = "plain"

    def trained(self, settings: LoopSettings, unet: UNet) -> Trained:
        return Trained(unet=True)

    def start(
        self, base: BaseModel, photos: Photos, settings: LoopSettings, seed: int, trigger: str, plan: MemoryPlan
    ) -> PlainRun:
        return PlainRun(base, photos, settings, seed, trigger, plan)


class PlainRun:
    """One run; see ``run.Run``."""

    templates: Sequence[str] = ("",)
    notes: tuple[str, ...] = ()

    def __init__(
        self, base: BaseModel, photos: Photos, settings: LoopSettings, seed: int, trigger: str, plan: MemoryPlan
    ) -> None:
        self.base, self.settings, self.seed, self.trigger = base, settings, seed, trigger
        self.photos = photos.for_training(settings, base.unet.device)
        device = plan.state_device(base.unet.device)
        self.tuned = {name: TrainedWeight.plain(weight, device) for name, weight in base.unet.parameters().items()}
        with torch.no_grad():
            self.empty = base.text.empty().detach()

    def passes(self) -> Mapping[Phase, int]:
        return {}

    def prepare(self, on_pass: OnPass) -> None:
        """Nothing has to be known before."""

    def groups(self) -> list[dict[str, Any]]:
        return []

    def weights(self) -> Mapping[str, TrainedWeight]:
        return self.tuned

    def losses(self, sample: DiffusionSample) -> Tensor:
        context = self.empty.expand(len(sample.timesteps), -1, -1)
        return denoising_errors(self.base.unet, self.photos.latents[sample.photos], sample, context)

    def context(self, z: Tensor, t: Tensor) -> Tensor:
        return self.empty

    def concept(self, on_pass: OnPass) -> Concept:
        word = torch.zeros(1, self.base.text.width)
        return Concept(self.trigger, PlainUNet.name, "plain", "random", word, (), self.settings, self.seed)
