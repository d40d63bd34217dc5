"""Writes the checkpoint that stock ComfyUI loads as Stable Diffusion 1.5: UNet, CLIP-L and VAE in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from e4t_core.files.checked_file import write_tensors
from e4t_core.files.file_errors import FileKind

from . import autoencoder, text_encoder
from .autoencoder import Autoencoder
from .text_encoder import TextEncoder
from .unet import UNetModel
from .widen import widen_unet


def write_checkpoint(
    path: Path, unet: Mapping[str, Tensor], text: TextEncoder, vae: Autoencoder, tie_break: float | None = None
) -> None:
    """``unet`` is the native state of a trained UNet of width 160; the file holds float16 at stock shapes."""
    wide = widen_unet(unet) if tie_break is None else widen_unet(unet, tie_break)
    state = {f"model.diffusion_model.{k}": v for k, v in wide.items()}
    state |= {f"cond_stage_model.transformer.{k}": v for k, v in text_encoder.stock_state(text).items()}
    state |= {f"first_stage_model.{k}": v for k, v in autoencoder.stock_state(vae).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    # The two scalars that scale latents stay float32: their rounding would shift every picture's colors.
    write_tensors(
        path,
        {k: v.to(torch.float32 if v.ndim == 0 else torch.float16) for k, v in state.items()},
        {"modelspec.title": "E4T mini world", "modelspec.architecture": "stable-diffusion-v1"},
        FileKind("Checkpoint"),
    )


def write_random_checkpoint(path: Path, seed: int = 0) -> None:
    """A checkpoint of the mini world's shapes with random weights: what tests load when quality does not matter."""
    torch.manual_seed(seed)
    unet = UNetModel()
    write_checkpoint(path, unet.state_dict(), TextEncoder(), Autoencoder())
