"""Pictures that a benchmark has drawn, kept under runs/, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from e4t_core.files.checked_file import write_tensors
from e4t_core.files.file_errors import FileKind
from e4t_core.methods.e4t.settings import TuningSettings


def that_count(settings: TuningSettings) -> dict[str, Any]:
    """The settings of one photo by name, without those that do nothing as the others are: what names pictures, so that a setting
    which is new and off leaves their names as they were."""
    settings = settings.for_photos(1)
    return {name: value for name, value in asdict(settings).items() if name not in settings.idle()}


def cached(path: Path, draw: Callable[[], Tensor]) -> Tensor:
    """Pictures ``(B, 3, H, W)`` in [0, 1] from ``path``, or drawn now and kept there as 8-bit."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {"pictures": (draw() * 255).round().to(torch.uint8)}, {}, FileKind("Pictures"))
    return load_file(path)["pictures"].float() / 255
