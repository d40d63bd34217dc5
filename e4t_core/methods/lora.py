"""LoRA (Hu et al. 2021, arXiv 2106.09685) of a UNet: thin matrices beside the frozen ones learn the photos.

    W = W0 + alpha / r * B A,    B (M, r) begins as zeros, A (r, N) at random

It was made for language models; for diffusion the field adapts query, key, value and output of self- and
cross-attention, at a rank of 4 to 32 and a rate of 1e-4, with DreamBooth's prompts (``identifier.py``). A is drawn evenly from
+-1 / sqrt(N), as the authors' own code does it (the paper says "random Gaussian"). The text encoder stays as it is.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..identifier import IdentifierRun, IdentifierSettings
from ..memory_need import Trained
from ..memory_plan import MemoryPlan
from ..photos import Photos
from ..prior import PriorSibling
from ..run import BaseModel
from ..settings import setting
from ..trained_weight import TrainedWeight
from ..unet import UNet
from ..weight_changes import LowRank, WeightChange

ATTENTION, TRANSFORMERS = "attention", "transformers"
LAYERS = {
    ATTENTION: re.compile(r"\.attn[12]\.to_(q|k|v|out\.0)\.weight$"),
    TRANSFORMERS: re.compile(r"\.attentions\.\d{1,3}\..*\.weight$"),
}
"""Which weights with more than one axis are adapted, by canonical name."""
# So many numbers have those weights for each number of queries, keys and values in Stable Diffusion 1.5; their factors less.
SHARE = {ATTENTION: 1.4, TRANSFORMERS: 3.9}


@dataclass(frozen=True)
class LoRASettings(IdentifierSettings):
    """Settings of LoRA.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    steps: int = setting(500, "Optimizer steps. More learn more, and prompts are obeyed less.", least=0, most=100_000)
    learning_rate: float = setting(
        1e-4, "Every step moves every number of the thin matrices by about this much.", least=0, most=1, step=1e-5
    )
    rank: int = setting(4, "Columns of the thin matrices. More hold more, and make a larger file.", least=1, most=128)
    alpha: float = setting(
        0.0,
        "What is learned is added alpha / rank times. 0: as the rank, so once.",
        least=0,
        most=1024,
        step=1.0,
        advanced=True,
    )
    layers: str = setting(
        ATTENTION,
        "What is adapted. attention: queries, keys, values and outputs. transformers: all matrices around them as well, in"
        " a file three times as large.",
        choices=tuple(LAYERS),
        advanced=True,
    )
    prior_weight: float = setting(
        0.0,
        "How much pictures of the class count that the base model drew before. They keep the class from becoming the photo."
        " 0: none are drawn.",
        least=0,
        most=10,
        step=0.1,
    )

    @property
    def scale(self) -> float:
        """alpha / r."""
        return (self.alpha or self.rank) / self.rank


class _Adapter:
    """One weight ``W0 + scale * B A``.

    Args:
        start: W0, on the device where masters live.
        settings: rank and scale.
        name, seed: what A is drawn from.
    """

    def __init__(self, start: Tensor, settings: LoRASettings, name: str, seed: int) -> None:
        self._start, self._scale = start, settings.scale
        self.shape = tuple(start.shape)
        inputs = math.prod(self.shape[1:])
        digest = hashlib.sha256(f"lora/{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        down = (2 * torch.rand((settings.rank, inputs), generator=generator) - 1) / math.sqrt(inputs)
        self.down = nn.Parameter(down.to(start.device))
        self.up = nn.Parameter(torch.zeros((self.shape[0], settings.rank), device=start.device))

    def trained(self) -> TrainedWeight:
        return TrainedWeight((self.up, self.down), self._make)

    def _make(self) -> Tensor:
        return self._start.float() + (self._scale * (self.up @ self.down)).reshape(self.shape)

    @torch.no_grad()
    def change(self, name: str) -> LowRank:
        # The scale goes into one of them: a concept is drawn without its settings.
        return LowRank(name, (self._scale * self.up).cpu(), self.down.detach().cpu().clone(), self.shape)


class LoRARun(IdentifierRun):
    """A run that trains thin matrices."""

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
        device = plan.state_device(self.device)
        self.adapters: dict[str, _Adapter] = {}
        for name in self.effective:
            if LAYERS[settings.layers].search(name) and (start := self.effective[name]).ndim > 1:
                held = start.detach().to(device, base.unet.dtype)
                # Autograd refuses to keep what was made in inference mode.
                held = held.clone() if held.is_inference() else held
                self.adapters[name] = _Adapter(held, settings, name, seed)

    def weights(self) -> Mapping[str, TrainedWeight]:
        return {name: adapter.trained() for name, adapter in self.adapters.items()}

    def changes(self) -> tuple[WeightChange, ...]:
        return tuple(adapter.change(name) for name, adapter in self.adapters.items() if bool(adapter.up.any()))


class LoRA(PriorSibling):
    """The method."""

    name = "lora"
    title = "LoRA"
    Settings = LoRASettings
    Run = LoRARun

    def trained(self, settings: LoRASettings, unet: UNet) -> Trained:
        shapes = unet.attention_projections().values()
        share = SHARE[settings.layers]
        return Trained(
            through=round(share * settings.rank * sum(m + n for m, n in shapes)),
            held=round(share * sum(m * n for m, n in shapes)),
            passes=self.passes_of(settings),
        )
