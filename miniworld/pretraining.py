"""What a config of ``commands.pretrain`` names to pre-train a domain of the mini world: photos, base model, backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from e4t_core.methods.e4t.concept_encoder import ConceptEncoder
from e4t_core.methods.e4t.weight_offsets import Offsets

from .attributes import DOMAINS, Identity, Scene
from .autoencoder import Autoencoder
from .concept_photos import CHUNK, concept_scene, subject_masks, training_identities
from .domains import load_backbone, widen_domain
from .models import load_text, load_unet, load_vae
from .renderer import SIZE, render
from .training_unet import TrainingText, TrainingUNet

__all__ = ["MiniBase", "MiniVae", "Photo", "TrainingPhotos", "load_backbone", "load_base"]


@dataclass(frozen=True, eq=False)
class Photo:
    """Attributes:
    image: ``(3, 128, 128)`` uint8.
    mask: ``(1, 128, 128)`` uint8, 255 where the subject is, 0 on background and accessory.
    """

    image: Tensor
    mask: Tensor


class TrainingPhotos:
    """One photo each of ``count`` training identities, drawn when it is read.

    Args:
        domain: "face" or "cat".
        count: of identities, a multiple of 64.
        seed: they are drawn from.

    Raises:
        ValueError: there is no such domain, or the count does not suit.
    """

    window = 1

    def __init__(self, domain: str, count: int, seed: int) -> None:
        if domain not in DOMAINS:
            raise ValueError(f"The mini world has no domain {domain!r}: choose one of {', '.join(DOMAINS)}.")
        if count < CHUNK or count % CHUNK:
            raise ValueError(f"The number of training photos, {count}, must be a multiple of {CHUNK}.")
        self.domain, self.seed, self.parts = domain, seed, (count,)

    def read(self, row: int, size: int) -> Photo:
        """The photo of a row.

        Raises:
            ValueError: another size than the renderer's is asked for.
        """
        if size != SIZE:
            raise ValueError(f"The mini world draws pictures of {SIZE} pixels, not {size}: set domain.image_size.")
        identity, scene = _contents(self.domain, self.seed, row // CHUNK)[row % CHUNK]
        picture = render([identity], [scene])
        mask = subject_masks([identity], [scene], picture)
        return Photo((picture[0] * 255).round().byte(), (mask[0] * 255).byte())


@lru_cache(maxsize=256)
def _contents(domain: str, seed: int, chunk: int) -> Sequence[tuple[Identity, Scene]]:
    rng = np.random.default_rng([seed, chunk])
    identities = training_identities(domain, chunk, rng)
    return [(identity, concept_scene(rng)) for identity in identities]


class MiniVae:
    """The mini world's autoencoder in the terms that a base for pre-training has: images in [0, 1]."""

    def __init__(self, network: Autoencoder) -> None:
        self.network = network

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, 128, 128)`` -> latents ``(B, 4, 16, 16)`` in the UNet's scale."""
        return self.network.to_unet(self.network.encode(images)).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``(B, 4, 16, 16)`` -> images ``(B, 3, 128, 128)``."""
        return self.network.decode(self.network.from_unet(latents)).float().clamp(0, 1)


@dataclass(frozen=True, eq=False)
class MiniBase:
    """The mini world's narrow base model, frozen.

    Attributes:
        name: of the base.
        family: whose checkpoint layout the widened base has.
        unet, text: the core's protocols.
        vae: photos to latents and back.
    """

    name: str
    family: str
    unet: TrainingUNet
    text: TrainingText
    vae: MiniVae

    def finish(self, encoder: ConceptEncoder, offsets: Offsets) -> tuple[ConceptEncoder, Offsets]:
        """What was trained on this base, made fit for the 320-channel base that ComfyUI loads."""
        return widen_domain(encoder, offsets)


def load_base(device: torch.device | str = "cpu") -> MiniBase:
    """The base from its shipped weights.

    Raises:
        MissingWeightsError: they have not been trained.
    """
    unet, text, vae = load_unet().to(device), load_text().to(device), load_vae().to(device)
    return MiniBase("miniworld", "sd1", TrainingUNet(unet), TrainingText(text), MiniVae(vae))
