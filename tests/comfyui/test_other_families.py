"""Models of other families, built by ComfyUI from the layout of their checkpoints (shapes only), wired into the node."""

from __future__ import annotations

import comfy.model_detection
import comfy.model_patcher
import comfy.supported_models
import comfy.supported_models_base
import pytest
import torch
from e4t_pack.nodes.host.networks.base_model import UnsupportedModelError
from test_bad_input import one_sentence, personalize

SDXL = {
    "adm_in_channels": 2816,
    "context_dim": 2048,
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "num_classes": "sequential",
    "num_heads": -1,
    "num_head_channels": 64,
    "out_channels": 4,
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
}
REFINER = SDXL | {
    "adm_in_channels": 2560,
    "context_dim": 1280,
    "model_channels": 384,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0],
    "transformer_depth_output": [0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0],
    "transformer_depth_middle": 4,
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
SD3 = {
    "pos_embed_scaling_factor": None,
    "in_channels": 16,
    "patch_size": 2,
    "depth": 24,
    "pos_embed_max_size": 192,
    "num_patches": 36864,
    "input_size": None,
    "adm_in_channels": 2048,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 1536},
    },
}


def built(layout: dict) -> comfy.model_patcher.ModelPatcher:
    config = comfy.model_detection.model_config_from_unet_config(dict(layout))
    assert config is not None
    config.set_inference_dtype(torch.float16, None)
    model = config.get_model({}, device=torch.device("meta"))
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("layout", "found"),
    [(SDXL, "SDXL model with context width 2048"), (REFINER, "SDXLRefiner model"), (FLUX, "Flux"), (SD3, "SD3")],
    ids=["SDXL", "SDXL refiner", "Flux", "SD3"],
)
def test_models_of_other_families_are_refused_by_name(base, domain, layout, found):
    with pytest.raises(UnsupportedModelError) as error:
        personalize(base, domain, model=built(layout))
    assert "Stable Diffusion 1.x and 2.x" in one_sentence(error) and found in str(error.value)
