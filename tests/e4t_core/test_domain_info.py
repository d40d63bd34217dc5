import dataclasses
import json

import pytest
from tiny import TinyUNet, tiny_info

from e4t_core.methods.e4t.domain_info import BackboneInfo, DomainMismatchError, base_note, base_version, check_base

UNET = TinyUNet()
INFO = tiny_info(UNET)
PROJECTIONS = UNET.attention_projections()
FIRST = next(iter(PROJECTIONS))
# What the base says of itself, in check_base's order.
FITTING = (INFO.context_width, INFO.prediction, INFO.feature_width, PROJECTIONS)


def test_the_base_it_was_made_for_is_accepted() -> None:
    check_base(INFO, *FITTING)


@pytest.mark.parametrize(
    "position, value, told",
    [
        (0, 768, "width 6, but .* width 768"),
        (1, "v", "'epsilon' prediction, but .* 'v'"),
        (2, 99, "width 32, but .* 99"),
        (3, {}, "has 0 .*missing there"),
        (3, {name: shape for name, shape in PROJECTIONS.items() if name != FIRST}, f"{FIRST} is missing there"),
        (3, PROJECTIONS | {"up.to_q.weight": (2, 2)}, "up.to_q.weight is not among them"),
        (3, PROJECTIONS | {FIRST: (12, 13)}, f"12×12 for {FIRST}, but .* 12×13"),
    ],
)
def test_another_base_is_named_in_one_sentence(position: int, value: object, told: str) -> None:
    base = list(FITTING)
    base[position] = value
    with pytest.raises(DomainMismatchError, match=told) as caught:
        check_base(INFO, *base)
    assert "'tiny'" in str(caught.value) and "load a base model" in str(caught.value)


@pytest.mark.parametrize(
    "name, value",
    [
        ("name", ""),
        ("name", "faces\ud800"),
        ("name", "n" * 101),
        ("word", ""),
        ("word", "human face"),
        ("word", "face\n"),
        ("word", "fa\x1bce"),
        ("license", "\x00"),
        ("base_name", "b" * 301),
        ("base_family", "sdxl"),
        ("prediction", "sample"),
        ("context_width", 0),
        ("scale", 0.0),
        ("scale", float("nan")),
        ("templates", "neutral"),
        ("templates", ()),
        ("projections", []),
        ("preset", {}),
        ("image_size", 1),
        ("image_size", 99_999_999),
        ("image_size", 64.0),
        ("context_width", 2**63),
        ("context_width", -6),
        ("feature_width", True),
        ("scale", 10**400),
        ("v_size", 100_000),
        ("crop_margin", -0.1),
        ("step", -1),
    ],
)
def test_a_description_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"Domain {name} = "):
        dataclasses.replace(INFO, **{name: value})


@pytest.mark.parametrize("layers", [(), (0, 1), (2, 1), (1, 1)])
def test_backbone_layers_count_from_one_and_rise(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="layers"):
        BackboneInfo("open_clip", "ViT-H-14", layers, 1280, 224)


@pytest.mark.parametrize(
    "name, version",
    [
        ("CompVis/stable-diffusion-v1-4", "1.4"),
        ("runwayml/stable-diffusion-v1-5", "1.5"),
        ("v1-5-pruned-emaonly.safetensors", "1.5"),
        ("SD 1.5\\sd_v1.4.ckpt", "1.4"),
        ("stabilityai/stable-diffusion-2-1-base", "2.1"),
        ("stabilityai/stable-diffusion-2", ""),
        ("v2-1_768-ema-pruned.safetensors", "2.1"),
        ("my-v21-5-mix", ""),
        ("dreamshaper_8.safetensors", ""),
        ("miniworld", ""),
        ("", ""),
    ],
)
def test_a_bases_name_says_its_version(name: str, version: str) -> None:
    assert base_version(name) == version


def test_the_base_it_was_trained_on_is_named_unless_it_is_the_wired_one() -> None:
    converted = dataclasses.replace(INFO, base_name="CompVis/stable-diffusion-v1-4")
    assert base_note(INFO) == base_note(converted, "sd-v1-4.safetensors") == ""
    assert base_note(converted, "CompVis/stable-diffusion-v1-4") == ""
    unknown = base_note(converted)
    assert "Stable Diffusion 1.4" in unknown and "CompVis/stable-diffusion-v1-4" in unknown
    other = base_note(converted, "v1-5-pruned-emaonly.safetensors")
    assert "v1-5-pruned-emaonly.safetensors is called 1.5" in other and "1.4" in other
    assert base_note(dataclasses.replace(INFO, base_name="miniworld")).count("miniworld") == 1


@pytest.mark.parametrize(
    "vision",
    [
        {"layers": 100_000},
        {"layers": [1, 2, 3, 4]},
        {"layers": True},
        {"width": 2**63},
        {"width": -1},
        {"patch_size": 0},
        {"head_width": 0},
        {"image_size": 1e9},
        {"mlp_ratio": float("nan")},
        {"act": "x" * 3000},
        {"a": {"b": {"c": {"d": {}}}}},
    ],
)
def test_a_backbones_description_has_bounds(vision: dict[str, object]) -> None:
    architecture = json.dumps({"embed_dim": 4, "vision_cfg": vision})
    with pytest.raises(ValueError, match="Backbone architecture"):
        BackboneInfo("open_clip", architecture, (1,), 8, 32)
    BackboneInfo("open_clip", json.dumps({"embed_dim": 4, "vision_cfg": {"layers": 2, "mlp_ratio": 4.0}}), (1,), 8, 32)
