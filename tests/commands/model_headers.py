"""Model files of true shapes that take no room: a safetensors header, and a body of zeros that the disk does not hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from miniworld.unet import UNetModel

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
    """A whole checkpoint: the mini world's UNet, a one-layer text encoder, a two-level autoencoder."""
    with torch.device("meta"):
        unet = UNetModel().state_dict()
    shapes = {f"model.diffusion_model.{name}": tuple(weight.shape) for name, weight in unet.items()}
    shapes["cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"] = (3072, 768)
    shapes["first_stage_model.encoder.conv_in.weight"] = (8, 3, 3, 3)
    shapes["first_stage_model.encoder.down.0.block.0.conv1.weight"] = (8, 8, 3, 3)
    shapes["first_stage_model.encoder.down.1.block.0.conv1.weight"] = (8, 8, 3, 3)
    return shapes


def backbone_shapes(depth: int = 32, width: int = 1280) -> dict[str, tuple[int, ...]]:
    """A whole open_clip model's vision tower."""
    shapes = {"visual.conv1.weight": (width, 3, 14, 14), "visual.positional_embedding": (257, width)}
    for block in range(depth):
        prefix = f"visual.transformer.resblocks.{block}"
        shapes[f"{prefix}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{prefix}.attn.out_proj.weight"] = (width, width)
        shapes[f"{prefix}.mlp.c_fc.weight"] = (4 * width, width)
        shapes[f"{prefix}.mlp.c_proj.weight"] = (width, 4 * width)
    return shapes
