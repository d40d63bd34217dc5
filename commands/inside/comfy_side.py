"""ComfyUI's own loader and the pack's adapters: what they say to the inputs that diffusers' networks are asked, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from commands.check.measured import Side, measure
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.domain_info import BackboneInfo

from .imported import pack

DomainOf = Callable[[Any, Any], Domain | None]
"""From the core's UNet and text encoder to the domain that is made, or was made, for them."""


def comfy_side(checkpoint: Path, domain_of: DomainOf, dtype: torch.dtype, loader: dict[str, Any] | None = None) -> Side:
    """A checkpoint by ComfyUI, measured in float32.

    Args:
        checkpoint: the file.
        domain_of: gives the domain.
        dtype: that the UNet is kept in, as it is in the file.
        loader: more arguments of ComfyUI's loader.
    """
    import comfy.sd

    with torch.inference_mode():
        # Kept as in the file; what is computed with is float32 on both sides.
        options = {"dtype": dtype}
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
            str(checkpoint), model_options=options, **(loader or {})
        )
        unet = pack("nodes.host.networks.base_model").ComfyUNet(model)
        # All weights are lent from here on: the module's own copy would only take memory.
        model.model.diffusion_model.to("meta")
        text = pack("nodes.host.networks.text_encoder").ComfyTextEncoder(clip)

        def encode(images: Tensor) -> Tensor:
            latent: Tensor = model.model.process_latent_in(vae.encode(images.movedim(1, -1)))
            return latent

        with torch.inference_mode(False):
            domain = domain_of(unet, text)
        return measure(unet, text, encode, domain)


def stock_vectors(info: BackboneInfo, file: Path, pictures: Tensor) -> Tensor:
    """What "Load CLIP Vision" reads from pictures ``(n, 3, S, S)`` in [0, 1]: ``(n, vectors, width)``."""
    import comfy.clip_vision

    with torch.inference_mode():
        stock = comfy.clip_vision.load(str(file))
        found: Tensor = pack("nodes.host.networks.backbone").stock_features(info, stock, pictures).clone()
    return found


def forget() -> None:
    """ComfyUI lets go of the models that it keeps."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    comfy.model_management.cleanup_models()
