import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from e4t_core.methods.e4t.clip_backbone import (
    BackboneError,
    ClipBackbone,
    backbone_source,
    build_vision_tower,
    normalize,
    read_backbone_weights,
)
from e4t_core.methods.e4t.domain_info import BackboneInfo

pytest.importorskip("open_clip")
VISION = {"layers": 3, "width": 8, "head_width": 4, "patch_size": 8, "image_size": 16}
INFO = BackboneInfo(
    kind="open_clip",
    architecture=json.dumps({"embed_dim": 4, "vision_cfg": VISION}),
    layers=(1, 3),
    width=8,
    image_size=16,
    weights_inside=True,
)


@pytest.fixture(scope="module")
def tower() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_vision_tower(INFO).eval()


def test_it_reads_the_cls_vector_after_the_listed_blocks_before_ln_post(tower: torch.nn.Module) -> None:
    backbone = ClipBackbone(INFO, tower.state_dict())
    images = torch.rand(2, 3, 16, 16)
    features = backbone.cls_features(images)
    assert features.shape == (2, 2, 8) and not features.requires_grad
    with torch.no_grad():
        x = tower.conv1(normalize(images, INFO)).flatten(2).transpose(1, 2)
        x = torch.cat([tower.class_embedding.expand(2, 1, -1), x], dim=1) + tower.positional_embedding
        x = tower.ln_pre(x)
        wanted = []
        for block in tower.transformer.resblocks:
            x = block(x)
            wanted.append(x[:, 0])
        assert torch.allclose(features, torch.stack([wanted[0], wanted[2]], dim=1), atol=1e-5)
        # The last vector is what the tower's own head starts from: training used the very same module.
        assert torch.allclose(tower.ln_post(wanted[2]) @ tower.proj, tower(normalize(images, INFO)), atol=1e-5)


def test_pictures_are_normalized_and_brought_to_size() -> None:
    gray = torch.full((1, 3, 40, 40), 0.5)
    out = normalize(gray, INFO)
    assert out.shape == (1, 3, 16, 16)
    for channel in range(3):
        expected = (0.5 - INFO.mean[channel]) / INFO.std[channel]
        assert torch.allclose(out[0, channel], torch.tensor(expected), atol=1e-5)


def test_it_works_inside_inference_mode_and_leaves_the_global_stream_alone(tower: torch.nn.Module) -> None:
    before = torch.random.get_rng_state()
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        inside = ClipBackbone(INFO, tower.state_dict()).cls_features(images)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(inside, ClipBackbone(INFO, tower.state_dict()).cls_features(images))


def test_named_architectures_are_open_clips() -> None:
    with torch.device("meta"):
        tower = build_vision_tower(BackboneInfo("open_clip", "ViT-B-32", (2, 12), 768, 224))
    assert len(tower.transformer.resblocks) == 12


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"architecture": "ViT-Z-99"}, "'ViT-Z-99' is unknown"),
        ({"architecture": json.dumps({"embed_dim": 4})}, "vision_cfg"),
        ({"architecture": json.dumps({"embed_dim": 4, "vision_cfg": {"colour": 1}})}, "colour"),
        ({"architecture": "RN50"}, "plain vision"),
        ({"layers": (1, 4)}, "Block 4 .* only 3"),
        ({"width": 16}, "width 8, but width 16"),
    ],
)
def test_a_tower_that_cannot_be_built_is_explained(changes: dict[str, object], told: str) -> None:
    with pytest.raises(BackboneError, match=told):
        build_vision_tower(dataclasses.replace(INFO, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "architecture",
    [
        "hf-hub:somebody/something",
        "local-dir:/etc",
        json.dumps({"embed_dim": 4, "vision_cfg": VISION | {"timm_model_name": "vit_tiny_patch16_224"}}),
        json.dumps({"embed_dim": 4, "vision_cfg": {"timm_model_name": "resnet18", "timm_model_pretrained": True}}),
    ],
)
def test_a_domain_file_sends_nobody_to_the_network_or_to_other_files(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    import open_clip.factory
    import open_clip.model

    asked: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, where: asked.append(where))
    monkeypatch.setattr(open_clip.factory, "_get_hf_config", lambda *where, **_: asked.append(where))
    monkeypatch.setattr(open_clip.model, "TimmModel", lambda *where, **_: asked.append(where))
    with pytest.raises(BackboneError, match=r"unknown to the installed open_clip|no plain vision transformer"):
        build_vision_tower(dataclasses.replace(INFO, architecture=architecture))
    assert asked == []


def test_weights_that_do_not_fit_are_explained(tower: torch.nn.Module) -> None:
    state = tower.state_dict()
    del state["proj"]
    with pytest.raises(BackboneError, match="do not fit"):
        ClipBackbone(INFO, state)


def test_weights_are_read_from_a_tower_file_or_a_whole_models_file(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.ones(2)}, tmp_path / "tower.safetensors")
    save_file({"visual.conv1.weight": torch.ones(2), "logit_scale": torch.ones(1)}, tmp_path / "model.safetensors")
    for name in ("tower", "model"):
        assert read_backbone_weights(tmp_path / f"{name}.safetensors").keys() == {"conv1.weight"}
    (tmp_path / "text.safetensors").write_text("no model")
    with pytest.raises(BackboneError, match="is not a safetensors file"):
        read_backbone_weights(tmp_path / "text.safetensors")
    with pytest.raises(BackboneError, match=r"none\.safetensors was not found"):
        read_backbone_weights(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("architecture", "pretrained", "source"),
    [
        ("ViT-H-14", "laion2b_s32b_b79k", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K on Hugging Face"),
        ("ViT-B-32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K on Hugging Face"),
    ],
)
def test_a_missing_file_is_named_with_where_it_can_be_had(
    tmp_path: Path, architecture: str, pretrained: str, source: str
) -> None:
    info = BackboneInfo("open_clip", architecture, (1,), 8, 224, pretrained=pretrained)
    with pytest.raises(BackboneError, match=f"none.safetensors was not found in .*had from {source}"):
        read_backbone_weights(tmp_path / "none.safetensors", info)
    assert backbone_source(info) == source
    assert backbone_source(INFO) == ""


def test_half_precision_gives_nearly_the_same_features_as_float32(tower: torch.nn.Module) -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    half = ClipBackbone(INFO, tower.state_dict(), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.tower.parameters()} == {torch.bfloat16}
    found, wanted = half.cls_features(images), ClipBackbone(INFO, tower.state_dict()).cls_features(images)
    assert found.dtype == torch.float32 and not torch.equal(found, wanted)
    # bfloat16 keeps 8 bits; three blocks add up a few roundings.
    assert torch.allclose(found, wanted, atol=0.05 * float(wanted.abs().max()))


def test_a_missing_open_clip_is_said_with_the_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(BackboneError, match="pip install open_clip_torch"):
        build_vision_tower(INFO)
