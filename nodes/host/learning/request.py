"""What is asked of a learning node, and the one check at its door: behind it, everything fits together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import comfy.clip_vision
import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....e4t_core.loop_settings import LoopSettings, SamplingSettings
from ....e4t_core.methods.e4t.domain import Domain
from ....e4t_core.run import Method
from . import previews
from .apply import check_applicable
from .content_key import WeightHashes
from .crops import CropChoice
from .masks import AUTO

LATENT_CHANNELS, PIXELS_PER_LATENT = 4, 8


class UnsupportedVAEError(ValueError):
    """A VAE whose latents the base model does not read."""


@dataclass(frozen=True, eq=False)
class LoadedDomain:
    """A domain with the CLIP_VISION model that reads photos for it, if one was wired in."""

    domain: Domain
    clip_vision: comfy.clip_vision.ClipVisionModel | None = None

    def decides(self, hashes: WeightHashes) -> tuple[str, str]:
        """What of it decides a concept: hashes of the domain and of the model that reads photos."""
        vision = self.clip_vision
        return self.domain.fingerprint, "" if vision is None else hashes.weights_key(vision.patcher)


@dataclass(frozen=True, eq=False)
class Request:
    """All that decides a concept.

    Attributes:
        model, clip, vae: as wired in; none of them is changed.
        images: IMAGE ``(n, H, W, C)`` in [0, 1], photos of ONE concept.
        masks: MASK, or none.
        trigger: what the concept is called in prompts.
        method: how it is learned.
        settings: of the method.
        seed: of noise, timesteps and templates.
        image_size: side of the square crop in pixels.
        crop_margin: room around a mask's box, as a share of its longer side.
        crop: what the crop follows where there is no mask.
        decides: what decides the result beside all this: texts, numbers, hashes.
        loaded: the domain, for methods that have one.
        sampling: how the concept is drawn.
        notes: what the node itself has to say, each in a sentence.
        mask_means: what a mask's 1 means, see ``masks.py``.
        preview_every: steps between two looks at what would be drawn, see ``previews.py``; it decides nothing.
    """

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    images: Tensor
    masks: Tensor | None
    trigger: str
    method: Method
    settings: LoopSettings
    seed: int
    image_size: int
    crop_margin: float
    decides: tuple[Any, ...] = ()
    loaded: LoadedDomain | None = None
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    notes: tuple[str, ...] = ()
    mask_means: str = AUTO
    preview_every: int = previews.AUTO
    crop: CropChoice = field(default_factory=CropChoice)


def check(request: Request) -> None:
    """Check what is wired in, before any work.

    Raises:
        ValueError: something cannot be used; the message is one sentence that says what and why.
    """
    check_applicable(request.model, request.clip, request.trigger)
    if request.vae is None:
        raise ValueError("The checkpoint holds no VAE, so VAE is empty: load one by itself and wire it in.")
    _check_vae(request.vae)


def _check_vae(vae: comfy.sd.VAE) -> None:
    ratio = vae.downscale_ratio
    if vae.latent_channels != LATENT_CHANNELS or vae.latent_dim != 2 or ratio != PIXELS_PER_LATENT:
        raise UnsupportedVAEError(
            f"E4T needs a Stable Diffusion 1.x or 2.x VAE (4 latent channels, 8 pixels per latent), but this VAE has"
            f" {vae.latent_channels} channels and {ratio} pixels: wire in the VAE of the base model's checkpoint."
        )
