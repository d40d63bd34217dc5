"""The mini world's shipped weights: safetensors with 8-bit matrices, which set-up expands.

A matrix or kernel is stored as int8 with one float16 scale per output row (the row's largest value is 127); vectors are
float16. That halves the repository at a relative error of about one per cent of a row's standard deviation. The gate in a file's
metadata was measured just before this rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from e4t_core.files.checked_file import write_tensors
from e4t_core.files.file_errors import FileKind

FOLDER = Path(__file__).parent / "weights"
SMALL = 4096  # numbers; smaller tensors are not worth a scale
_INT8, _SCALE = "int8:", "scale:"


def save_weights(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, eight_bit: bool = True
) -> None:
    """Writes a state dict; whole or not at all. Without ``eight_bit`` all is float16."""
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if not eight_bit or tensor.ndim < 2 or tensor.numel() < SMALL or not tensor.is_floating_point():
            packed[name] = tensor.half() if tensor.is_floating_point() else tensor
            continue
        rows = tensor.float().flatten(1)
        scale = (rows.abs().amax(1) / 127).clamp_min(6e-8).half()
        packed[_SCALE + name] = scale
        quantised = (rows / scale.float()[:, None]).round().clamp(-127, 127)
        packed[_INT8 + name] = quantised.to(torch.int8).view(tensor.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, packed, metadata or {}, FileKind("Weights file"))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict in float32 (integers as they are), and the file's metadata."""
    state: dict[str, Tensor] = {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            if key.startswith(_SCALE):
                continue
            tensor = file.get_tensor(key)
            if key.startswith(_INT8):
                name = key.removeprefix(_INT8)
                scale = file.get_tensor(_SCALE + name).float()
                state[name] = tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))
            else:
                state[key] = tensor.float() if tensor.is_floating_point() else tensor
        return state, dict(file.metadata() or {})
