"""Checkpoints of true Stable Diffusion and CLIP shapes with random weights, in the layouts that artists have."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from e4t_core.methods.e4t.clip_backbone import build_vision_tower
from e4t_core.methods.e4t.domain_info import BackboneInfo

from .full_size import SD15

SD21: dict[str, Any] = {key: value for key, value in SD15.items() if key != "num_heads"} | {
    "num_heads": -1,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "context_dim": 1024,
}
SD_VAE: dict[str, Any] = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


@dataclass(frozen=True)
class Family:
    """What to write and compare.

    Attributes:
        name: for the table.
        unet: ComfyUI's configuration of the UNet.
        text_layers: of the text encoder (SD 2.x: with the last one, which prompts skip).
        domain_made_by: "diffusers" or "ComfyUI".
        vae: configuration of the VAE; none: a tiny one (TAESD).
        loader: further arguments of ComfyUI's loader.
    """

    name: str
    unet: dict[str, Any]
    text_layers: int
    domain_made_by: str
    vae: dict[str, Any] | None = field(default_factory=lambda: dict(SD_VAE))
    loader: dict[str, Any] = field(default_factory=dict)

    @property
    def context(self) -> int:
        """Width of a context."""
        return int(self.unet["context_dim"])


FAMILIES = (Family("SD 1.5", SD15, 12, "diffusers"), Family("SD 2.1", SD21, 24, "ComfyUI"))


def draw(shapes: dict[str, torch.Size], generator: torch.Generator, prefix: str = "") -> dict[str, Tensor]:
    """Random weights in float16 that keep a signal's size; every norm and bias is drawn, so that none can be mixed up."""
    state = {}
    for name, shape in shapes.items():
        # Even between ±√3, so that the variance is 1; a billion normal numbers would take a minute.
        value = torch.rand(shape, generator=generator).sub_(0.5).mul_(12**0.5)
        if not shape:
            value = value.abs() + 0.5
        elif len(shape) < 2:
            value = value * (0.1 if name.endswith("weight") else 0.2) + (1.0 if name.endswith("weight") else 0.0)
        else:
            value = value * (0.38 / shape[1] ** 0.5 if "embedding" in name else shape[1:].numel() ** -0.5)
        state[prefix + name] = value.half()
    return state


def shapes_of(module: torch.nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of a module's state."""
    return {name: value.shape for name, value in module.state_dict().items()}


def write_checkpoint(path: Path, family: Family, seed: int = 0) -> None:
    """A whole checkpoint as artists have it, with random weights in float16."""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.taesd.taesd import TAESD

    generator = torch.Generator().manual_seed(seed)
    state = unet_state(family, generator)
    with torch.device("meta"):
        vae = TAESD() if family.vae is None else AutoencoderKL(ddconfig=family.vae, embed_dim=4)
    state |= draw(shapes_of(vae), generator, "first_stage_model.")
    save_file(state | text_state(family, generator), path)


def unet_state(family: Family, generator: torch.Generator) -> dict[str, Tensor]:
    """A checkpoint's UNet."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        unet = UNetModel(**family.unet, operations=comfy.ops.disable_weight_init)
    return draw(shapes_of(unet), generator, "model.diffusion_model.")


def text_state(family: Family, generator: torch.Generator) -> dict[str, Tensor]:
    """A checkpoint's text encoder."""
    import comfy.clip_model
    import comfy.ops
    from open_clip.transformer import TextTransformer

    if family.context == 768:
        config = {
            "num_hidden_layers": family.text_layers,
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "hidden_act": "quick_gelu",
            "max_position_embeddings": 77,
            "eos_token_id": 49407,
        }
        text = comfy.clip_model.CLIPTextModel(config, torch.float32, "meta", comfy.ops.disable_weight_init)
        shapes = {name: shape for name, shape in shapes_of(text).items() if not name.startswith("text_projection")}
        return draw(shapes, generator, "cond_stage_model.transformer.")
    with torch.device("meta"):
        open_text = TextTransformer(width=1024, heads=16, layers=family.text_layers, output_dim=1024)
    shapes = {name: shape for name, shape in shapes_of(open_text).items() if name != "attn_mask"}
    return draw(shapes, generator, "cond_stage_model.model.")


def vision_state(architecture: str, seed: int = 1) -> dict[str, Tensor]:
    """Random weights of an open_clip vision tower, as in a whole model's file ("visual.")."""
    info = BackboneInfo("open_clip", architecture, (1,), 1280, 224)
    with torch.device("meta"):
        tower = build_vision_tower(info)
    return draw(shapes_of(tower), torch.Generator().manual_seed(seed), "visual.")
