"""Canonical names against ComfyUI's own table, and for layouts that the table does not list."""

from __future__ import annotations

import comfy.utils
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from e4t_core.canonical_names import canonical_names

SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": (1, 2, 4, 4),
    "num_heads": 8,
    "use_spatial_transformer": True,
    "context_dim": 768,
    "legacy": False,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
}
SMALL = SD15 | {
    "num_res_blocks": [2, 2],
    "channel_mult": (1, 1),
    "transformer_depth": [0, 1, 1, 1],
    "transformer_depth_output": [1, 0, 1, 0, 1, 1],
    "transformer_depth_middle": 1,
}


def native_names(config):
    with torch.device("meta"):
        return list(UNetModel(**config).state_dict())


@pytest.mark.parametrize("config", [SD15, SMALL], ids=["SD 1.5", "mixed levels"])
def test_names_are_those_of_comfyui_s_table(config):
    names = native_names(config)
    table = {native: canonical for canonical, native in comfy.utils.unet_to_diffusers(config).items()}
    assert canonical_names(names) == {name: table[name] for name in names}


def test_stable_diffusion_1_5_has_96_projections():
    ends = tuple(f"to_{part}.weight" for part in "qkv")
    assert sum(name.endswith(ends) for name in canonical_names(native_names(SD15)).values()) == 96


def test_an_unknown_parameter_is_named():
    with pytest.raises(ValueError, match="label_emb"):
        canonical_names(["label_emb.0.0.weight"])
