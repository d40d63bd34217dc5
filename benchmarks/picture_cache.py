"""Pictures that a benchmark has drawn, kept under runs/, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from e4t_core.files.checked_file import write_tensors
from e4t_core.files.file_errors import FileKind


def cached(path: Path, draw: Callable[[], Tensor]) -> Tensor:
    """Pictures ``(B, 3, H, W)`` in [0, 1] from ``path``, or drawn now and kept there as 8-bit."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {"pictures": (draw() * 255).round().to(torch.uint8)}, {}, FileKind("Pictures"))
    return load_file(path)["pictures"].float() / 255
