"""diffusers' networks behind the pre-training command, and ComfyUI's behind the nodes: one base model, small here.

``python -m benchmarks.parity`` says the same of the true shapes.
"""

from __future__ import annotations

import comfy.clip_vision
import pytest
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from safetensors.torch import save_file

from benchmarks import parity, random_checkpoint
from benchmarks.full_size import SD15
from e4t_core.methods.e4t.clip_backbone import build_vision_tower, from_transformers
from e4t_core.methods.e4t.domain_info import BackboneInfo

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from commands.base.latents import SCALING
from commands.base.single_file import SingleFile

# As narrow as ComfyUI takes for Stable Diffusion; the second level has no attention.
BLOCKS = {
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 1],
    "transformer_depth": [1, 0],
    "transformer_depth_output": [1, 1, 0, 0],
}
SD1 = random_checkpoint.Family(
    "SD 1.x",
    SD15 | BLOCKS,
    text_layers=2,
    domain_made_by="diffusers",
    vae=None,
    loader={"te_model_options": {"clip_l_model_config": {"num_hidden_layers": 2}}},
)
SD2 = random_checkpoint.Family(
    "SD 2.x",
    random_checkpoint.SD21 | BLOCKS,
    text_layers=3,
    domain_made_by="ComfyUI",
    vae=None,
    loader={"te_model_options": {"clip_h_model_config": {"num_hidden_layers": 3}}},
)


@pytest.mark.parametrize("family", [SD1, SD2], ids=lambda family: family.name)
def test_one_checkpoint_is_one_base_model_and_a_domain_of_one_side_serves_the_other(family, tmp_path):
    differences, odd, (ours, stock) = parity.compare(family, tmp_path)
    assert not odd
    assert len(ours.facts["matrices with offsets"]) == 6 * 4
    # Rounding only: the same float32 products in another order.
    assert max(value for _, value in differences) < parity.TOLERANCE, differences
    # The comparison would see a lost domain, prompt or picture.
    for values in (ours.values, stock.values):
        assert (values["denoise with offsets"] - values["denoise"]).abs().max() > 100 * parity.TOLERANCE
        assert (values["context of prompts"][0] - values["context of the empty prompt"][0]).abs().max() > 0.1
        assert values["latent of an image"].std() > 0.01


def test_a_single_file_s_vae_gives_the_posterior_s_mean_in_the_unet_s_scale(tmp_path):
    config = random_checkpoint.SD_VAE | {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "resolution": 32}
    stock = AutoencoderKL(ddconfig=config, embed_dim=4)
    state = random_checkpoint.draw(random_checkpoint.shapes_of(stock), torch.Generator().manual_seed(0))
    stock.load_state_dict({name: value.float() for name, value in state.items()})
    unet = {
        "input_blocks.0.0.weight": (8, 4, 3, 3),
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 768),
    }
    tensors = {f"model.diffusion_model.{name}": torch.zeros(shape) for name, shape in unet.items()}
    tensors |= {f"first_stage_model.{name}": value for name, value in state.items()}
    save_file(tensors, tmp_path / "base.safetensors")
    images = torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    vae = SingleFile(tmp_path / "base.safetensors").vae(torch.float32)
    found = vae.encode(images)
    assert torch.allclose(found, SCALING * stock.encode(2 * images - 1), atol=1e-5)
    assert torch.allclose(vae.decode(found), ((stock.decode(found / SCALING) + 1) / 2).clamp(0, 1), atol=1e-4)


@pytest.fixture(scope="module")
def tower_state():
    """A ViT of ViT-H's make-up, three blocks small; open_clip's names."""
    vision = '{"embed_dim": 12, "vision_cfg": {"layers": 3, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16}}'
    info = BackboneInfo("open_clip", vision, (1, 3), 16, 16, weights_inside=True)
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {name: torch.randn(value.shape) for name, value in build_vision_tower(info).state_dict().items()}


def test_the_layout_artists_own_is_mapped_to_open_clip_s_key_by_key(tower_state):
    owned = comfy.clip_vision.convert_to_transformers(
        {f"visual.{k}": v.clone() for k, v in tower_state.items()}, "visual."
    )
    assert "vision_model.encoder.layers.2.self_attn.v_proj.bias" in owned
    # A whole CLIP model's file holds these as well.
    owned |= {"logit_scale": torch.ones(()), "text_model.final_layer_norm.weight": torch.ones(3)}
    owned["vision_model.embeddings.position_ids"] = torch.arange(5)
    found = from_transformers(owned)
    assert found.keys() == tower_state.keys()
    assert all(torch.equal(found[name], value) for name, value in tower_state.items())


def test_the_backbone_leaves_the_device_when_its_features_are_known(tmp_path):
    import comfy.model_management
    from e4t_pack.nodes.host.networks.backbone import stock_features

    config = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "num_channels": 3,
        "hidden_act": "gelu", "image_size": 16, "patch_size": 8, "projection_dim": 8, "model_type": "clip_vision_model",
    }  # fmt: skip
    stock = comfy.clip_vision.ClipVisionModel(config)
    stock.model.load_state_dict({k: torch.zeros(v.shape) for k, v in stock.model.state_dict().items()})
    info = BackboneInfo("comfy", "ViT", (1, 2), 16, 16)
    features = stock_features(info, stock, torch.rand(2, 3, 16, 16))
    assert features.shape == (2, 2, 16) and features.dtype == torch.float32
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models]
    assert not any(stock.patcher.is_clone(model) for model in loaded)
