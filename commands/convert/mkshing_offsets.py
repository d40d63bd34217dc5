"""mkshing's weight offsets, alone in ``weight_offsets.pt`` or among the UNet's weights in ``unet.pt``.

Its network is ours under other names: from ``v`` come ``linear1`` (N, our u) and ``linear2`` (M, our y); the outer product
passes ``linear_column`` (N×N, our A, a) and ``linear_row`` (M×M, our B, b); it is used as ``weight * (1 + Δ)``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from e4t_core.canonical_names import ATTENTION_PROJECTION
from e4t_core.files.checked_file import check_keys
from e4t_core.files.file_errors import shown_name
from e4t_core.methods.e4t.weight_offsets import WeightOffsets

from .mkshing_tensors import FILE, Shape, check_numbers, check_tensors, size

OURS = {"linear1": "u", "linear2": "y", "linear_column": "column", "linear_row": "row"}
LEAVES = ("v", *(f"{layer}.{part}" for layer in OURS for part in ("weight", "bias")))
KEY = re.compile(r"(?P<block>.+)\.attn[12]\.wo_[qkv]\..+")
# A whole SD 1.x or 2.x UNet: 32 attentions, and 686 tensors of its own.
STOCK_MATRICES, STOCK_UNET_TENSORS = 96, 686


def read_offsets(path: Path, tensors: Mapping[str, Tensor]) -> WeightOffsets:
    """Offsets in our four-layer form, from the offset tensors of a file (:func:`is_offset`); frozen float32.

    Raises:
        MkshingFileError: there are none, some are missing or unknown, or shapes do not belong together.
    """
    blocks = sorted({match["block"] for key in tensors if (match := KEY.fullmatch(key))})
    if not blocks:
        raise FILE.fault(
            path,
            "holds no weight offsets (names with .wo_q., .wo_k. and .wo_v.), so it is a plain UNet or another model",
            "name a directory that E4T pre-training or tuning has written",
        )
    matrices = [f"{block}.attn{number}.wo_{part}" for block in blocks for number in (1, 2) for part in "qkv"]
    odd = next((name for name in map(_canonical, matrices) if not re.fullmatch(ATTENTION_PROJECTION, name)), None)
    if odd is not None:
        raise FILE.fault(path, f"holds an offset of {shown_name(odd)}, a matrix that no Stable Diffusion UNet has")
    check_keys(path, FILE, tensors, {f"{matrix}.{leaf}" for matrix in matrices for leaf in LEAVES})
    v_size = size(path, tensors, f"{matrices[0]}.v")
    expected: dict[str, Shape] = {}
    shapes: dict[str, tuple[int, int]] = {}
    for matrix in matrices:
        n, m = size(path, tensors, f"{matrix}.linear1.bias"), size(path, tensors, f"{matrix}.linear2.bias")
        shapes[_canonical(matrix)] = (m, n)
        expected[f"{matrix}.v"] = (v_size,)
        for layer, out, into in (
            ("linear1", n, v_size),
            ("linear2", m, v_size),
            ("linear_column", n, n),
            ("linear_row", m, m),
        ):
            expected |= {f"{matrix}.{layer}.weight": (out, into), f"{matrix}.{layer}.bias": (out,)}
    check_tensors(path, tensors, expected)
    contexts = {shape[1] for name, shape in shapes.items() if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    if len(contexts) != 1:
        raise FILE.fault(path, f"has cross-attentions for contexts of {len(contexts)} widths")
    offsets = WeightOffsets(shapes, v_size, device="meta")
    state = {}
    for matrix in matrices:
        prefix = _canonical(matrix).removesuffix(".weight")
        state[f"{prefix}.v0"] = tensors[f"{matrix}.v"].float()
        for theirs, ours in OURS.items():
            for part in ("weight", "bias"):
                state[f"{prefix}.{ours}.{part}"] = tensors[f"{matrix}.{theirs}.{part}"].float()
    offsets.load_state_dict(state, assign=True)
    return offsets.eval().requires_grad_(False)


def is_offset(key: str) -> bool:
    """Whether a name of ``unet.pt`` belongs to an offset."""
    return KEY.fullmatch(key) is not None


def check_unet(path: Path, weights: Mapping[str, Tensor], offsets: WeightOffsets) -> None:
    """Check the UNet's own weights of ``unet.pt`` as far as they are known without the base model.

    Raises:
        MkshingFileError: a whole SD UNet has another number of tensors, an offset has no matrix of its shape, or values
            are no finite float numbers.
    """
    if len(offsets.names) == STOCK_MATRICES and len(weights) != STOCK_UNET_TENSORS:
        raise FILE.fault(path, f"holds {len(weights)} UNet tensors; a Stable Diffusion UNet has {STOCK_UNET_TENSORS}")
    for name, shape in offsets.shapes.items():
        if name not in weights or tuple(weights[name].shape) != shape:
            found = f"holds {tuple(weights[name].shape)} as" if name in weights else "lacks"
            raise FILE.fault(path, f"{found} {shown_name(name)}, whose offset has the shape {shape}")
    check_numbers(path, weights)


def _canonical(matrix: str) -> str:
    attention, part = matrix.rsplit(".wo_", 1)
    return f"{attention}.to_{part}.weight"
