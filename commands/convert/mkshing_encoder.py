"""mkshing's ``encoder.pt``: its encoder's own layers, and the image backbone's weights (``clip_vision.*``)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from e4t_core.files.checked_file import check_keys
from e4t_core.methods.e4t.domain_info import BLOCKS, TOKENS
from e4t_core.methods.e4t.patch_token_encoder import PatchTokenEncoder

from .mkshing_tensors import FILE, Shape, check_tensors, counted, read_tensors, size

TOWER = "clip_vision."
OURS = {
    "unet_feature_embedder.0": "unet_in",
    "unet_feature_embedder.2": "unet_out",
    "feature_linear": "feature",
    "final_linear": "final",
}
FIRST = re.compile(r"first_linears\.([0-9]+)\.(?:weight|bias)")
BLOCK = re.compile(r"transformer\.resblocks\.([0-9]+)\..+")


@dataclass(frozen=True, eq=False)
class MkshingTower:
    """An open_clip vision transformer without projection, as it stands in ``encoder.pt``.

    Attributes:
        state: its weights, by open_clip's names.
        width: C. blocks: how many. image_size: side of its input in pixels. tokens: [CLS] and every second patch.
    """

    state: dict[str, Tensor]
    width: int
    blocks: int
    image_size: int
    tokens: int


@dataclass(frozen=True, eq=False)
class MkshingEncoder:
    """``encoder.pt``, checked. ``tower`` is none where the file was saved without it (its first versions did so)."""

    network: PatchTokenEncoder
    tower: MkshingTower | None


def read_encoder(path: Path) -> MkshingEncoder:
    """Read ``encoder.pt``; ViT-H/14 and SD 1.x: 657 tensors, 266 without the backbone.

    Raises:
        MkshingFileError: tensors are missing or unknown, or shapes or counts do not belong together.
    """
    tensors = read_tensors(path)
    state = {key.removeprefix(TOWER): value for key, value in tensors.items() if key.startswith(TOWER)}
    tower = _tower(path, state) if state else None
    network = _network(path, {key: value for key, value in tensors.items() if not key.startswith(TOWER)})
    if tower and (tower.tokens, tower.width) != (network.layers, network.clip_width):
        raise FILE.fault(
            path,
            f"holds {network.layers} first_linears of width {network.clip_width}, but its backbone gives {tower.tokens}"
            f" tokens of width {tower.width}",
        )
    return MkshingEncoder(network, tower)


def _network(path: Path, head: Mapping[str, Tensor]) -> PatchTokenEncoder:
    count = counted(path, head, FIRST, TOKENS)
    if count == 0:
        raise FILE.fault(
            path,
            "holds no first_linears, so it is an encoder of another kind",
            "name the directory of a checkpoint that reads open_clip's ViT-H-14",
        )
    layers = [*OURS, *(f"first_linears.{index}" for index in range(count))]
    check_keys(path, FILE, head, {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")})
    features = size(path, head, "unet_feature_embedder.0.weight", axis=1, axes=2)
    width, word = size(path, head, "feature_linear.bias"), size(path, head, "final_linear.bias")
    network = PatchTokenEncoder(count, width, features, word, device="meta")
    names = {f"first_linears.{index}": f"first.{index}" for index in range(count)} | OURS
    ours = {f"{theirs}.{part}": f"{name}.{part}" for theirs, name in names.items() for part in ("weight", "bias")}
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    check_tensors(path, head, {key: shapes[name] for key, name in ours.items()})
    network.load_state_dict({name: head[key].float() for key, name in ours.items()}, assign=True)
    network.eval().requires_grad_(False)
    return network


def _tower(path: Path, state: dict[str, Tensor]) -> MkshingTower:
    blocks = max(counted(path, state, BLOCK, BLOCKS), 1)
    named = {f"{TOWER}{key}": value for key, value in state.items()}
    needed = ("conv1.weight", "positional_embedding", "transformer.resblocks.0.mlp.c_fc.bias")
    check_keys(
        path,
        FILE,
        {key: named[key] for key in named if key.removeprefix(TOWER) in needed},
        {f"{TOWER}{key}" for key in needed},
    )
    width = size(path, named, f"{TOWER}conv1.weight", axes=4)
    patch = size(path, named, f"{TOWER}conv1.weight", axis=3, axes=4)
    positions = size(path, named, f"{TOWER}positional_embedding", axes=2)
    hidden = size(path, named, f"{TOWER}transformer.resblocks.0.mlp.c_fc.bias")
    shapes = _tower_shapes(width, patch, positions, blocks, hidden)
    check_tensors(path, named, {f"{TOWER}{key}": shape for key, shape in shapes.items()})
    side = math.isqrt(positions - 1)
    if side < 1 or side * side != positions - 1:
        raise FILE.fault(
            path, f"holds {TOWER}positional_embedding of {positions} rows, which is not [CLS] and a square of patches"
        )
    return MkshingTower(state, width, blocks, side * patch, 1 + (positions - 1) // 2)


def _tower_shapes(width: int, patch: int, positions: int, blocks: int, hidden: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {
        "class_embedding": (width,),
        "positional_embedding": (positions, width),
        "conv1.weight": (width, 3, patch, patch),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for number in range(blocks):
        block = f"transformer.resblocks.{number}"
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        for layer, out, into in (
            ("attn.out_proj", width, width),
            ("mlp.c_fc", hidden, width),
            ("mlp.c_proj", width, hidden),
        ):
            shapes |= {f"{block}.{layer}.weight": (out, into), f"{block}.{layer}.bias": (out,)}
    return shapes
