"""A Stable Diffusion of true make-up and small widths, a small image backbone, and a config that trains on them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from layouts import make_folder
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from commands.pretrain.config.config_file import load_config
from commands.pretrain.config.sections import Config
from e4t_core.methods.e4t.clip_backbone import build_vision_tower
from e4t_core.methods.e4t.domain_info import BackboneInfo

UNET: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
TOWER = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
}


def make_base(path: Path, downsamplings: int = 0, unet: Mapping[str, Any] | None = None) -> Path:
    """A diffusers folder of random weights; without a tokenizer, as the vocabulary is known.

    Its autoencoder halves a picture's side ``downsamplings`` times; ``unet`` changes fields of ``UNET``.
    """
    text = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=12,
        vocab_size=49408,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    count = downsamplings + 1
    coder = {
        "block_out_channels": (32,) * count,
        "down_block_types": ("DownEncoderBlock2D",) * count,
        "up_block_types": ("UpDecoderBlock2D",) * count,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        UNet2DConditionModel(**UNET | dict(unet or {})).save_pretrained(path / "unet")
        CLIPTextModel(text).half().save_pretrained(path / "text_encoder")
        AutoencoderKL(**coder, latent_channels=4).save_pretrained(path / "vae")
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(path / "scheduler")
    (path / "model_index.json").write_text("{}")
    return path


def make_backbone(path: Path) -> Path:
    """A safetensors file of a random vision tower of ``TOWER``."""
    info = BackboneInfo(kind="open_clip", architecture=json.dumps(TOWER), layers=(1, 2), width=64, image_size=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file({name: value.contiguous() for name, value in build_vision_tower(info).state_dict().items()}, path)
    return path


def make_place(folder: Path, pictures: int = 40) -> Path:
    """A folder with ``base``, ``backbone.safetensors`` and ``data``."""
    make_base(folder / "base", downsamplings=3)
    make_backbone(folder / "backbone.safetensors")
    make_folder(folder / "data", pictures)
    return folder


def overrides(place: Path, out: Path) -> list[str]:
    """What makes a quick run of the face config; one more ``section.key=value`` may follow."""
    return [
        "domain.image_size=64",
        "base.kind=diffusers",
        f'base.path="{(place / "base").as_posix()}"',
        f'backbone.path="{(place / "backbone.safetensors").as_posix()}"',
        f"backbone.architecture='{json.dumps(TOWER)}'",
        "backbone.layers=[1, 2]",
        "backbone.width=64",
        "backbone.image_size=32",
        f'data.sources=[{{kind = "folder", path = "{(place / "data").as_posix()}"}}]',
        "data.workers=0",
        "training.steps=4",
        "training.batch=4",
        "training.micro_batch=4",
        "training.precision=fp32",
        "training.learning_rate_per_sample=1e-4",
        "training.gradient_checkpointing=false",
        f'output.folder="{out.as_posix()}"',
        "output.checkpoint_every=2",
        "output.log_every=1",
        "output.preview_every=0",
        "output.tensorboard=false",
    ]


def config_of(place: Path, out: Path, *more: str) -> Config:
    """The config of such a run."""
    return load_config(Path("face"), [*overrides(place, out), *more])
