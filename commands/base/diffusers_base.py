"""A real Stable Diffusion as the base of pre-training: UNet, text encoder, VAE and schedule by diffusers and transformers.

A base is a diffusers folder or one ``.safetensors`` checkpoint on this machine; nothing is ever downloaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .clip_text import ClipTextEncoder
from .diffusers_folder import DiffusersFolder
from .diffusers_unet import PROJECTIONS, DiffusersUNet, narrowed
from .latents import LatentCoder
from .single_file import BaseModelError, SingleFile


@dataclass(frozen=True, eq=False)
class DiffusersBase:
    """A frozen base model, in the core's terms.

    Attributes:
        name: of its file or folder.
        family: "sd1" or "sd2".
        unet: the core's ``UNet``.
        text: the core's ``TextEncoder``.
        vae: photos to latents and back.
    """

    name: str
    family: str
    unet: DiffusersUNet
    text: ClipTextEncoder
    vae: LatentCoder

    def encode(self, images: Tensor) -> Tensor:
        """Latents ``(B, 4, H/8, W/8)`` in the UNet's scale, of images ``(B, 3, H, W)`` in [0, 1]."""
        return self.vae.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Images ``(B, 3, 8h, 8w)`` in [0, 1] of latents ``(B, 4, h, w)``."""
        return self.vae.decode(latents)


def load_base(
    path: str | os.PathLike[str],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    gradient_checkpointing: bool = False,
) -> DiffusersBase:
    """Load a base model from a diffusers folder or a ``.safetensors`` checkpoint, offline.

    Args:
        path: of the folder or file.
        dtype: of UNet (but for the weights that get offsets), text encoder and VAE, float32 or a half precision; offsets and
            encoder train in float32 beside it.
        device: where it computes; on "meta" its shapes alone, for which no weight is read.
        gradient_checkpointing: of the UNet, see :class:`DiffusersUNet`.

    Raises:
        BaseModelError: it is missing, damaged, no safetensors, or no plain Stable Diffusion 1.x or 2.x; one sentence
            says which.
    """
    path = Path(path).absolute()
    shapes_only = torch.device(device).type == "meta"
    parts = DiffusersFolder(path, shapes_only) if path.is_dir() else SingleFile(path, shapes_only)
    # The meta device has no autocast to compute with weights of two types.
    network = narrowed(parts.unet(torch.float32), dtype, but=() if shapes_only else PROJECTIONS).to(device)
    unet = DiffusersUNet(network, parts.schedule(), parts.prediction(), gradient_checkpointing)
    text = ClipTextEncoder(parts.text(dtype).to(device), parts.tokenizer())
    if text.width != unet.context_width:
        raise BaseModelError(
            f"The text encoder of base model {path.name} in {path.parent} has width {text.width}, but its UNet reads"
            f" {unet.context_width}: one of the two is of another model, so download the base again."
        )
    vae = parts.vae(dtype)
    vae.network.to(device)
    return DiffusersBase(path.name, parts.family, unet, text, vae)
