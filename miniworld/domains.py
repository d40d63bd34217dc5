"""The mini world's domains: shipped narrow weights, and what they become for the base that ComfyUI loads.

``commands.pretrain`` trains them on the 160-channel networks, by the configs ``mini_face`` and ``mini_cat``. ``widen_domain``
makes the result fit the 320-channel base, exactly but for that base's tie-break.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from commands.pretrain.config.config_file import load_config
from commands.pretrain.config.sections import Config
from commands.pretrain.run.domain_file import domain_info
from e4t_core.methods.e4t.clip_backbone import ClipBackbone
from e4t_core.methods.e4t.concept_encoder import ConceptEncoder
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.offset_forms import make_offsets
from e4t_core.methods.e4t.weight_offsets import Offsets, WeightOffsets

from .models import read
from .presets import PRESETS
from .train_backbone import INFO as BACKBONE
from .unet import STOCK_WIDTH
from .widen import double

CONFIGS = {"faces": "mini_face", "cats": "mini_cat"}
"""Shipped weights -> the config that they are trained by."""
FIT_THRESHOLDS = {"faces": -0.09, "cats": -0.10}
"""Shipped weights -> the least gain that is usual for their photos, as ``python -m benchmarks.photo_fit`` prints it."""


def config_of(weights: str, *overrides: str) -> Config:
    """The config by which shipped weights ("faces", "cats") are trained."""
    return load_config(Path(CONFIGS[weights]), overrides)


def load_backbone(device: torch.device | str = "cpu") -> ClipBackbone:
    """The shipped image backbone."""
    return ClipBackbone(BACKBONE, read("backbone")[0], device)


def load_mini_domain(weights: str = "faces") -> Domain:
    """A shipped domain, for the 320-channel base.

    Raises:
        MissingWeightsError: it has not been trained.
    """
    state, metadata = read(weights)
    return build_domain(weights, state, read("backbone")[0], int(metadata.get("step", 0)))


def build_domain(weights: str, state: Mapping[str, Tensor], backbone: Mapping[str, Tensor], step: int) -> Domain:
    """The domain for the 320-channel base, from narrow weights (``encoder.*``, ``offsets.*``)."""
    wide = widen_domain(*narrow_networks(state))
    info = domain_info(
        config_of(weights),
        *wide,
        base_name="miniworld",
        base_family="sd1",
        prediction="epsilon",
        backbone=BACKBONE,
        step=step,
    )
    info = replace(info, preset=PRESETS[weights], fit_threshold=FIT_THRESHOLDS[weights])
    return Domain(*wide, info, {k: v.half() for k, v in backbone.items()})


def narrow_domain(weights: str = "faces") -> Domain:
    """A shipped domain as it was trained, for the 160-channel base; its backbone's weights are not in it."""
    encoder, offsets = narrow_networks(read(weights)[0])
    info = load_mini_domain(weights).info
    return Domain(encoder, offsets, replace(info, projections=offsets.shapes, feature_width=encoder.feature_width))


def narrow_networks(state: Mapping[str, Tensor]) -> tuple[ConceptEncoder, WeightOffsets]:
    """Encoder and offsets for the 160-channel base, as they are trained and shipped (``encoder.*``, ``offsets.*``)."""
    encoder_state = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    offset_state = {k.removeprefix("offsets."): v for k, v in state.items() if k.startswith("offsets.")}
    word_width, inputs = encoder_state["final.weight"].shape
    encoder = ConceptEncoder(len(BACKBONE.layers), BACKBONE.width, inputs - BACKBONE.width, word_width)
    encoder.load_state_dict(encoder_state)
    shapes = {
        f"{key.removesuffix('.y.weight')}.weight": (
            offset_state[key].shape[0],
            offset_state[key.replace(".y.weight", ".u.weight")].shape[0],
        )
        for key in offset_state
        if key.endswith(".y.weight")
    }
    offsets = WeightOffsets(shapes)
    offsets.load_state_dict(offset_state)
    return encoder.eval(), offsets.eval()


def widen_domain(encoder: ConceptEncoder, offsets: Offsets) -> tuple[ConceptEncoder, Offsets]:
    """The domain of a 160-channel base -> the domain of the base that ``widen.widen_unet`` makes of it."""
    narrow = encoder.feature_width
    wide_encoder = ConceptEncoder(encoder.layers, encoder.clip_width, 2 * narrow, encoder.word_width)
    state = dict(encoder.state_dict())
    image, features = state["final.weight"].split([encoder.clip_width, narrow], dim=1)
    state["final.weight"] = torch.cat([image, double(features, 1) / 2], dim=1)
    wide_encoder.load_state_dict(state)

    def widened(size: int) -> int:
        return 2 * size if 2 * size == STOCK_WIDTH else size

    shapes = {name: (widened(m), widened(n)) for name, (m, n) in offsets.shapes.items()}
    wide_offsets = make_offsets(offsets.form, shapes, offsets.v_size)
    wide_offsets.load_state_dict(_widen_offsets(offsets.state_dict(), offsets.shapes))
    return wide_encoder, wide_offsets


def _widen_offsets(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    wide: dict[str, Tensor] = {}
    for name, (rows, columns) in shapes.items():
        prefix = name.removesuffix(".weight")
        size_of = {"y": rows, "row": rows, "u": columns, "column": columns}
        for key in (key for key in state if key.startswith(f"{prefix}.")):
            value, layer = state[key], key.removeprefix(f"{prefix}.").split(".")[0]
            if layer == "delta":  # an offset is a factor: doubled weights have it twice
                for dim, size in enumerate((rows, columns)):
                    value = double(value, dim) if 2 * size == STOCK_WIDTH else value
            elif layer in size_of and 2 * size_of[layer] == STOCK_WIDTH:
                square = layer in ("row", "column") and value.ndim == 2
                value = double(double(value, 0), 1) / 2 if square else double(value, 0)
            wide[key] = value
    return wide
