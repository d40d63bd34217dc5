"""The image backbone from the file that artists own, in transformers' layout: the same vectors as by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

from e4t_core.methods.e4t.clip_backbone import ClipBackbone, normalize, read_backbone_weights
from e4t_core.methods.e4t.domain_info import BackboneInfo

VISION = {"layers": 3, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16, "mlp_ratio": 2.0}
INFO = BackboneInfo("open_clip", json.dumps({"embed_dim": 12, "vision_cfg": VISION}), (1, 3), 16, 16)


def test_cls_vectors_are_those_of_transformers_model(tmp_path: Path) -> None:
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        patch_size=8,
        image_size=16,
        projection_dim=12,
        hidden_act="gelu",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.CLIPVisionModelWithProjection(config).eval()
        state = {name: torch.randn(value.shape) * 0.3 for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    save_file(state | {"text_model.final_layer_norm.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = ClipBackbone(INFO, read_backbone_weights(tmp_path / "model.safetensors")).cls_features(images)
    with torch.no_grad():
        hidden = model(pixel_values=normalize(images, INFO), output_hidden_states=True).hidden_states
    wanted = torch.stack([hidden[1][:, 0], hidden[3][:, 0]], dim=1)
    assert found.shape == (2, 2, 16)
    assert torch.allclose(found, wanted, atol=1e-4)
