"""Prior pictures on disk: drawn once for a base model and a class word, then read.

One safetensors file for each, ``latents`` ``(n, 4, h, w)`` in float16. Its name is a hash of all that decides the pictures, so nothing in
it has to be compared; a file that is damaged or of another shape is drawn again. More pictures are added to those there are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..prior import WantedPrior, kept
from .checked_file import is_finite, read_header, read_tensors, write_tensors
from .file_errors import FileError, FileKind

PRIOR = FileKind("Prior pictures", "delete it, and it is drawn again")
LATENTS, FORMAT = "latents", "e4t-prior"
MOST = 1024
"""Pictures that are read."""

DrawGroup = Callable[[range], Tensor]
"""Latents ``(n, 4, h, w)`` in the UNet's scale of the pictures with these numbers."""


def kept_prior(path: Path, wanted: WantedPrior, size: tuple[int, int], draw: DrawGroup) -> tuple[Tensor, str]:
    """The pictures, read as far as they are there and drawn as far as not; what was drawn is kept, also where it is cancelled.

    Args:
        path: of the file, in a folder that is made if need be.
        wanted: which pictures.
        size: (h, w) of their latents.
        draw: draws a group; what it raises passes through.

    Returns:
        Latents ``(n, 4, h, w)`` float16 on the CPU, and a sentence where they could not be kept; else an empty text.
    """
    found = _read(path, size)
    missing = wanted.groups(len(found))
    if not missing:
        return found[: wanted.count], ""
    parts, fault = [found[: missing[0].start]], _unwritable(path)
    try:
        for group in missing:
            parts.append(kept(draw(group)))
    finally:
        if len(parts) > 1 and not fault:
            fault = _written(path, torch.cat(parts))
    return torch.cat(parts)[: wanted.count], fault


def _read(path: Path, size: tuple[int, int]) -> Tensor:
    nothing = torch.zeros((0, 4, *size), dtype=torch.float16)
    with contextlib.suppress(FileError, OSError):
        header = read_header(path, PRIOR)
        info = header.tensors.get(LATENTS)
        if info is None or info.dtype != torch.float16 or len(info.shape) != 4 or info.shape[0] > MOST:
            return nothing
        if tuple(info.shape[1:]) != (4, *size):
            return nothing
        latents = read_tensors(path, {LATENTS: info}, PRIOR)[LATENTS]
        return latents if is_finite(latents) else nothing
    return nothing


def _unwritable(path: Path) -> str:
    """Why nothing could be kept, before minutes are spent on drawing; an empty text where it could."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_suffix(".probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        return _told(path, error)
    return ""


def _written(path: Path, latents: Tensor) -> str:
    try:
        write_tensors(path, {LATENTS: latents}, {"e4t.format": FORMAT}, PRIOR)
    except (FileError, OSError) as error:
        return _told(path, error)
    return ""


def _told(path: Path, error: Exception) -> str:
    why = getattr(error, "strerror", None) or str(error).rstrip(".")
    return (
        f"The prior pictures could not be kept in {path.parent} ({why}), so they are drawn again next time: check that the"
        " folder may be written to."
    )
