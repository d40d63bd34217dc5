"""The frozen networks that a config names, base model and image backbone: loaded for a run, or outlined to check it.

On the meta device an outline is made: networks of the files' shapes, for which no weight is read. What is wrong with a
file or does not suit the config is found there as it would be by a run.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from e4t_core.files.checked_file import read_header
from e4t_core.files.file_errors import FileError, FileKind
from e4t_core.methods.e4t.clip_backbone import (
    BackboneError,
    ClipBackbone,
    missing_backbone,
    read_backbone_weights,
    tower_weights,
)
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


class Text(TextEncoder, Protocol):
    """The base's text encoder.

    Attributes:
        network: whose weights it has.
    """

    network: nn.Module


class Base(Protocol):
    """What pre-training needs of a base model.

    A factory of kind "python" is called as ``factory(device=…)``, to estimate a run with the device "meta". Its base may also have ``finish(encoder, offsets)``, which
    makes what was trained on it fit the base that the domain is for.
    """

    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def unet(self) -> UNet: ...
    @property
    def text(self) -> Text: ...
    @property
    def vae(self) -> Coder: ...


def open_base(settings: BaseSettings, precision: str, gradient_checkpointing: bool, device: torch.device) -> Base:
    """Load the base model.

    Raises:
        BaseModelError: it cannot be used (see ``diffusers_base.load_base``), or is not what the settings say.
        FactoryError: the factory does not exist.
    """
    if settings.kind == "python":
        return cast(Base, from_factory(settings.factory)(device=device))
    from .diffusers_base import load_base  # a "python" base needs neither diffusers nor transformers
    from .single_file import BASE_MODEL

    base: Base = load_base(settings.path, DTYPES[precision], device, gradient_checkpointing)
    path = Path(settings.path)
    if settings.family != base.family:
        raise BASE_MODEL.fault(
            path, f"is of the family {base.family!r}", f"set base.family to that, not {settings.family!r}"
        )
    # ComfyUI tells the two predictions apart in the same way, and would refuse a domain of the other kind on this base.
    if settings.prediction not in ("", base.unet.prediction):
        raise BASE_MODEL.fault(
            path,
            f"predicts {base.unet.prediction!r} by its metadata, scheduler or weights",
            f"set base.prediction to that, not {settings.prediction!r}, or leave it empty",
        )
    return base


def open_backbone(settings: BackboneSettings, precision: str, device: torch.device) -> ClipBackbone:
    """Load the image backbone, in half precision where the run is.

    Raises:
        BackboneError: its file is missing, damaged, or does not fit the settings.
        FactoryError: the factory does not exist.
    """
    if settings.kind == "python":
        return cast(ClipBackbone, from_factory(settings.factory)(device=device))
    path, info = Path(settings.path), _described(settings)
    if device.type == "meta":
        weights = _outlined(path, info)
    else:
        weights = read_backbone_weights(path, info)
        info = replace(info, sha256=_sha256(path))
    backbone = ClipBackbone(info, weights, device, DTYPES[precision])
    _check_image_size(path, info, backbone.tower)
    return backbone


def _outlined(path: Path, info: BackboneInfo) -> dict[str, Tensor]:
    if not path.is_file():
        raise BackboneError(missing_backbone(path, info))
    try:
        tensors = read_header(path, FileKind("Image backbone file")).tensors
    except FileError as error:
        raise BackboneError(str(error)) from error
    return tower_weights({n: torch.empty(i.shape, dtype=i.dtype, device="meta") for n, i in tensors.items()})


def _check_image_size(path: Path, info: BackboneInfo, tower: Any) -> None:
    """That pictures of the configured size have as many patches as the tower has positions."""
    patch, positions = tower.conv1.kernel_size[0], tower.positional_embedding.shape[0]
    if (info.image_size // patch) ** 2 + 1 != positions:
        raise BackboneError(
            f"backbone.image_size = {info.image_size} gives {(info.image_size // patch) ** 2} patches, but the image"
            f" backbone {path} knows {positions - 1}: set it to {patch * round((positions - 1) ** 0.5)}."
        )


def _described(settings: BackboneSettings) -> BackboneInfo:
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
