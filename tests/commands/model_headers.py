"""Model files of true shapes that take no room: a safetensors header, and a body of zeros that the disk does not hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from transformers import CLIPTextConfig, CLIPTextModel

from e4t_core.methods.e4t.clip_backbone import build_vision_tower
from e4t_core.methods.e4t.domain_info import BackboneInfo
from miniworld.unet import UNetModel, UNetShape

Shapes = Mapping[str, tuple[int, ...]]


def write_header(path: Path, shapes: Shapes) -> Path:
    """A sparse float16 safetensors file."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return path


def base_shapes() -> dict[str, tuple[int, ...]]:
    """A whole checkpoint: the mini world's UNet at its stock width, CLIP-L's text model with one layer, a tiny VAE."""
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=1, num_attention_heads=12, vocab_size=49408
    )
    with torch.device("meta"):
        unet = UNetModel(UNetShape(width=320)).state_dict()
        words = CLIPTextModel(text).state_dict()
        coder = AutoencoderTiny().state_dict()
    shapes = {f"model.diffusion_model.{name}": tuple(weight.shape) for name, weight in unet.items()}
    for name, weight in words.items():
        shapes[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tuple(weight.shape)
    for name, weight in coder.items():
        part, _, number, rest = name.split(".", 3)
        # The stock decoder's layer 0 is a clamp, which has no weights.
        place = f"first_stage_model.taesd_{part}.{int(number) + (part == 'decoder')}.{rest}"
        shapes[place] = tuple(weight.shape)
    return shapes


def backbone_shapes(architecture: str = "ViT-H-14", width: int = 1280) -> dict[str, tuple[int, ...]]:
    """A whole open_clip model's vision tower."""
    info = BackboneInfo(kind="open_clip", architecture=architecture, layers=(1,), width=width, image_size=224)
    with torch.device("meta"):
        tower = build_vision_tower(info).state_dict()
    return {f"visual.{name}": tuple(weight.shape) for name, weight in tower.items()}
