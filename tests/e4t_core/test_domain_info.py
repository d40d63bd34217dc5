import dataclasses

import pytest
from tiny import TinyUNet, tiny_info

from e4t_core.methods.e4t.domain_info import BackboneInfo, DomainMismatchError, check_base

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
