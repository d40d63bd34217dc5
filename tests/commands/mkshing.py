"""mkshing's checkpoints, written from their specification at any width, and what it computes, spelled out slowly.

Nothing of the conversion or of the core is used here but open_clip's transformer blocks: everything else is a second, naive
implementation in float64.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# For tiny.py, the base model of a few thousand numbers.
sys.path.append(str(Path(__file__).parents[1] / "e4t_core"))

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64)
SCALE = 0.3


# What is in its files ------------------------------------------------------------------------------------------------


def architecture(grid: int = 4, patch: int = 56, layers: int = 2, width: int = 8) -> str:
    """A small open_clip vision transformer of grid × grid patches."""
    vision = {
        "layers": layers,
        "width": width,
        "head_width": width // 2,
        "patch_size": patch,
        "image_size": grid * patch,
    }
    return json.dumps({"embed_dim": 4, "vision_cfg": vision})


def make_tower(described: str, seed: int = 0) -> nn.Module:
    """open_clip's tower with random weights; its projection is removed, as in mkshing's files."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    config = json.loads(described)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), False).eval()
        for name, parameter in tower.named_parameters():
            parameter.data = parameter.data + 0.1 * torch.randn(parameter.shape) * (parameter.ndim == 1)
    tower.proj = None
    return tower.requires_grad_(False)


def encoder_state(tower: nn.Module, tokens: int, features: int, words: int, seed: int = 1) -> dict[str, Tensor]:
    """``encoder.pt``: the tower and mkshing's own layers."""
    draw = torch.Generator().manual_seed(seed)
    width = tower.state_dict()["class_embedding"].shape[0]
    layers = {
        "unet_feature_embedder.0": (width, features),
        "unet_feature_embedder.2": (width, width),
        "feature_linear": (width, 2 * width),
        **{f"first_linears.{index}": (width, width) for index in range(tokens)},
        "final_linear": (words, width),
    }
    state = {f"clip_vision.{key}": value.clone() for key, value in tower.state_dict().items()}
    for name, shape in layers.items():
        state[f"{name}.weight"] = torch.randn(shape, generator=draw) * shape[1] ** -0.5
        state[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=draw)
    return state


def offset_state(shapes: Mapping[str, tuple[int, int]], seed: int = 2) -> dict[str, Tensor]:
    """``weight_offsets.pt`` for matrices "….to_q.weight" of shape (M, N); asymmetric in every respect."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, (m, n) in shapes.items():
        matrix = name.removesuffix(".weight").replace(".to_", ".wo_")
        state[f"{matrix}.v"] = 1 + 0.1 * torch.randn(1, generator=draw)
        for layer, out, into in (("linear1", n, 1), ("linear2", m, 1), ("linear_column", n, n), ("linear_row", m, m)):
            state[f"{matrix}.{layer}.weight"] = 0.7 * torch.randn((out, into), generator=draw) * into**-0.5
            state[f"{matrix}.{layer}.bias"] = 0.2 * torch.randn(out, generator=draw)
    return state


def unet_shapes(widths: tuple[int, ...] = (4, 8, 16, 16), context: int = 6) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an SD 1.x UNet in diffusers: 686 tensors, 96 of them attention projections."""
    shapes: dict[str, tuple[int, ...]] = {}
    time = 4 * widths[0]

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    def resnet(name: str, into: int, out: int) -> None:
        layer(f"{name}.norm1", into)
        layer(f"{name}.conv1", out, into, 3, 3)
        layer(f"{name}.time_emb_proj", out, time)
        layer(f"{name}.norm2", out)
        layer(f"{name}.conv2", out, out, 3, 3)
        if into != out:
            layer(f"{name}.conv_shortcut", out, into, 1, 1)

    def attention(name: str, width: int) -> None:
        layer(f"{name}.norm", width)
        layer(f"{name}.proj_in", width, width, 1, 1)
        block = f"{name}.transformer_blocks.0"
        for number, into in ((1, width), (2, context)):
            shapes[f"{block}.attn{number}.to_q.weight"] = (width, width)
            shapes[f"{block}.attn{number}.to_k.weight"] = (width, into)
            shapes[f"{block}.attn{number}.to_v.weight"] = (width, into)
            layer(f"{block}.attn{number}.to_out.0", width, width)
        layer(f"{block}.ff.net.0.proj", 8 * width, width)
        layer(f"{block}.ff.net.2", width, 4 * width)
        for number in (1, 2, 3):
            layer(f"{block}.norm{number}", width)
        layer(f"{name}.proj_out", width, width, 1, 1)

    layer("conv_in", widths[0], 4, 3, 3)
    layer("time_embedding.linear_1", time, widths[0])
    layer("time_embedding.linear_2", time, time)
    now, skips = widths[0], [widths[0]]
    for level, width in enumerate(widths):
        for index in range(2):
            resnet(f"down_blocks.{level}.resnets.{index}", now, width)
            now = width
            skips.append(now)
            if level < 3:
                attention(f"down_blocks.{level}.attentions.{index}", width)
        if level < 3:
            layer(f"down_blocks.{level}.downsamplers.0.conv", width, width, 3, 3)
            skips.append(now)
    for index in range(2):
        resnet(f"mid_block.resnets.{index}", now, now)
    attention("mid_block.attentions.0", now)
    for level, width in enumerate(reversed(widths)):
        for index in range(3):
            resnet(f"up_blocks.{level}.resnets.{index}", now + skips.pop(), width)
            now = width
            if level > 0:
                attention(f"up_blocks.{level}.attentions.{index}", width)
        if level < 3:
            layer(f"up_blocks.{level}.upsamplers.0.conv", width, width, 3, 3)
    layer("conv_norm_out", now)
    layer("conv_out", 4, now, 3, 3)
    return shapes


def projections(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """The attention projections among a UNet's weights."""
    ends = tuple(f"to_{part}.weight" for part in "qkv")
    return {name: (shape[0], shape[1]) for name, shape in shapes.items() if name.endswith(ends)}


CONFIG = {
    "pretrained_model_name_or_path": "CompVis/stable-diffusion-v1-4",
    "clip_model_name_or_path": "ViT-H-14::laion2b_s32b_b79k",
    "placeholder_token": "*s",
    "domain_class_token": "face",
    "domain_embed_scale": SCALE,
    "prompt_template": "face",
    "resolution": 64,
    "unfreeze_clip_vision": False,
    "max_train_steps": 30000,
    "learning_rate": 1.6e-5,
}


def write(folder: Path, config: Mapping[str, Any] | None = None, **files: Mapping[str, Any]) -> Path:
    """A directory as mkshing writes it: ``config.json`` and one ``.pt`` file per keyword."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    for name, state in files.items():
        torch.save(dict(state), folder / f"{name}.pt")
    return folder


def tuned_config() -> dict[str, Any]:
    """``config.json`` of a tuned directory."""
    return {"max_train_steps": 15, "reg_lambda": 0.1, "domain_embed_scale": SCALE, "pretrained_args": dict(CONFIG)}


# What it computes ----------------------------------------------------------------------------------------------------


def delta(state: Mapping[str, Tensor], name: str) -> Tensor:
    """Δ ``(M, N)`` of the matrix "….to_q.weight": an outer product, a linear over its rows, one over its columns."""
    matrix = name.removesuffix(".weight").replace(".to_", ".wo_")

    def linear(layer: str, x: Tensor) -> Tensor:
        return x @ state[f"{matrix}.{layer}.weight"].double().T + state[f"{matrix}.{layer}.bias"].double()

    v = state[f"{matrix}.v"].double()
    u, y = linear("linear1", v), linear("linear2", v)
    product = y[:, None] * u[None]
    return linear("linear_row", linear("linear_column", product).T).T


def used_weights(weights: Mapping[str, Tensor], offsets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All UNet weights as they are used: ``weight * (1 + Δ)`` on the projections."""
    used = {name: weight.double() for name, weight in weights.items()}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    return used | {name: used[name] * (1 + delta(offsets, name)) for name in projections(shapes)}


def resize_matrix(pixels: int, side: int) -> Tensor:
    """``(side, pixels)``: cubic convolution (a = -0.75) with aligned corners and repeated borders, no smoothing."""
    matrix = torch.zeros((side, pixels), dtype=torch.float64)
    for row in range(side):
        position = row * (pixels - 1) / (side - 1)
        for pixel in range(math.floor(position) - 1, math.floor(position) + 3):
            x = abs(position - pixel)
            near = 1.25 * x**3 - 2.25 * x**2 + 1
            far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[row, min(max(pixel, 0), pixels - 1)] += near if x <= 1 else far if x < 2 else 0.0
    return matrix


def preprocess(image: Tensor, side: int) -> Tensor:
    """An image ``(3, H, W)`` in [-1, 1] as the tower reads it: squashed to a square, then CLIP's mean and deviation."""
    image = resize_matrix(image.shape[1], side) @ image.double() @ resize_matrix(image.shape[2], side).T
    return ((image + 1) / 2 - MEAN[:, None, None]) / STD[:, None, None]


def tokens_of(tower: nn.Module, image: Tensor) -> Tensor:
    """``(L, C)``: ln_post([CLS]) and the last block's patch tokens 1, 3, 5, … as they are; image ``(3, H, W)``, [-1, 1]."""
    tower = tower.double()
    pixels = preprocess(image, tower.conv1.kernel_size[0] * math.isqrt(tower.positional_embedding.shape[0] - 1))
    patches = tower.conv1(pixels[None])[0].flatten(1).T
    x = torch.cat([tower.class_embedding[None], patches]) + tower.positional_embedding
    x = tower.ln_pre(x)[None]
    for block in tower.transformer.resblocks:
        x = block(x)
    picked = [tower.ln_post(x[0, 0])] + [x[0, 1 + patch] for patch in range(1, len(patches), 2)]
    tower.float()
    return torch.stack(picked)


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.01 * x)


def encode(state: Mapping[str, Tensor], tower: nn.Module, image: Tensor, features: Tensor) -> Tensor:
    """E ``(B, D)`` of an image ``(3, H, W)`` in [-1, 1] and pooled UNet features ``(B, F)``."""

    def linear(name: str, x: Tensor) -> Tensor:
        return state[f"{name}.weight"].double() @ x + state[f"{name}.bias"].double()

    tokens, offsets = tokens_of(tower, image), []
    for row in features.double():
        unet = linear("unet_feature_embedder.2", leaky(linear("unet_feature_embedder.0", row)))
        each = [
            linear(f"first_linears.{index}", linear("feature_linear", torch.cat([token, unet])))
            for index, token in enumerate(tokens)
        ]
        offsets.append(linear("final_linear", leaky(sum(each) / len(each))))
    return torch.stack(offsets)


def picture(height: int = 40, width: int = 56) -> Tensor:
    """A smooth picture ``(3, H, W)`` in [-1, 1] that is not square."""
    y = torch.linspace(0, 5, height, dtype=torch.float64)[:, None]
    x = torch.linspace(0, 7, width, dtype=torch.float64)[None]
    return torch.stack([torch.sin(x + y), torch.cos(2 * x - y), torch.sin(x * y / 3)])
