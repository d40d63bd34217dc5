"""A domain and a photo of random values, small and soon loaded, for a base of the mini world's shapes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open

from e4t_core.canonical_names import canonical_names
from e4t_core.files.domain_file import save_domain
from e4t_core.methods.e4t.clip_backbone import build_vision_tower
from e4t_core.methods.e4t.concept_encoder import ConceptEncoder
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.domain_info import BackboneInfo, DomainInfo
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.methods.e4t.weight_offsets import WeightOffsets

UNET_PREFIX = "model.diffusion_model."
STEPS = 2
"""Tuning steps of the random domain's preset: enough for a progress bar, too few to wait for."""


def write_random_domain(path: Path, checkpoint: Path) -> None:
    """A domain of random weights that fits the base model in `checkpoint`."""
    with safe_open(checkpoint, framework="pt") as file:
        keys = [key for key in file.keys() if key.startswith(UNET_PREFIX)]  # noqa: SIM118
        shapes = {key.removeprefix(UNET_PREFIX): tuple(file.get_slice(key).get_shape()) for key in keys}
    canonical = canonical_names(shapes)
    projections = {
        canonical[name]: (shape[0], shape[1])
        for name, shape in shapes.items()
        if name.endswith((".to_q.weight", ".to_k.weight", ".to_v.weight"))
    }
    # One mean per channel of conv_in, of every input-side block and of the middle block; all are equally wide here.
    width = shapes["input_blocks.0.0.weight"][0]
    feature_width = width * (2 + max(int(name.split(".")[1]) for name in shapes if name.startswith("input_blocks.")))
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
    backbone = BackboneInfo(
        kind="open_clip",
        architecture=json.dumps({"embed_dim": 32, "vision_cfg": vision}),
        layers=(1, 2),
        width=64,
        image_size=32,
        weights_inside=True,
    )
    info = DomainInfo(
        name="mini_faces",
        word="face",
        base_family="sd1",
        prediction="epsilon",
        context_width=768,
        feature_width=feature_width,
        projections=projections,
        backbone=backbone,
        scale=0.1,
        templates=("a photo of {}",),
        # Looking for the subject takes longer than all the rest; who needs it switches it on by E4T Settings.
        preset=TuningSettings(
            steps=STEPS, learning_rate=1e-4, regularization=0.01, batch=1, micro_batch=1, find_subject=False
        ),
        image_size=128,
    )
    torch.manual_seed(0)
    tower = build_vision_tower(backbone)
    encoder = ConceptEncoder(len(backbone.layers), backbone.width, feature_width, info.context_width)
    save_domain(path, Domain(encoder, WeightOffsets(projections), info, dict(tower.state_dict())))


def write_random_photo(path: Path) -> None:
    """160×128 pixels of colored noise."""
    pixels = torch.randint(0, 256, (128, 160, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(path)
