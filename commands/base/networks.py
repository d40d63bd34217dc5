"""The frozen networks that a config names: base model and image backbone, loaded for a run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from e4t_core.methods.e4t.clip_backbone import ClipBackbone, read_backbone_weights
from e4t_core.methods.e4t.domain_info import BackboneInfo
from e4t_core.unet import TextEncoder, UNet

from .factories import from_factory
from .settings import BackboneSettings, BaseSettings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Coder(Protocol):
    """The base's autoencoder.

    Attributes:
        network: whose weights decide what is coded.
    """

    network: nn.Module

    def encode(self, images: Tensor) -> Tensor:
        """Latents ``(B, 4, H/8, W/8)`` float32 in the UNet's scale, of images ``(B, 3, H, W)`` in [0, 1]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Images ``(B, 3, 8h, 8w)`` float32 in [0, 1]."""


class Base(Protocol):
    """What pre-training needs of a base model.

    A factory of kind "python" is called as ``factory(device=…)``. Its base may also have ``finish(encoder, offsets)``, which
    makes what was trained on it fit the base that the domain is for.
    """

    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def unet(self) -> UNet: ...
    @property
    def text(self) -> TextEncoder: ...
    @property
    def vae(self) -> Coder: ...


def open_base(settings: BaseSettings, precision: str, gradient_checkpointing: bool, device: torch.device) -> Base:
    """Load the base model.

    Raises:
        BaseModelError: it cannot be used; see ``diffusers_base.load_base``.
        FactoryError: the factory does not exist.
    """
    if settings.kind == "python":
        return cast(Base, from_factory(settings.factory)(device=device))
    from .diffusers_base import load_base

    base: Base = load_base(
        settings.path, cast(Any, settings.prediction or None), DTYPES[precision], device, gradient_checkpointing
    )
    return base


def open_backbone(settings: BackboneSettings, precision: str, device: torch.device) -> ClipBackbone:
    """Load the image backbone, in half precision where the run is.

    Raises:
        BackboneError: its file is missing or does not fit.
        FactoryError: the factory does not exist.
    """
    if settings.kind == "python":
        return cast(ClipBackbone, from_factory(settings.factory)(device=device))
    path = Path(settings.path)
    info = info_of(settings)
    weights = read_backbone_weights(path, info)
    described = BackboneInfo(**{**info.__dict__, "sha256": _sha256(path)})
    return ClipBackbone(described, weights, device, DTYPES[precision])


def info_of(settings: BackboneSettings) -> BackboneInfo:
    """The open_clip backbone that a config describes; its weights' hash is not known yet."""
    return BackboneInfo(
        kind="open_clip",
        architecture=settings.architecture,
        pretrained=settings.pretrained,
        layers=settings.layers,
        width=settings.width,
        image_size=settings.image_size,
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
