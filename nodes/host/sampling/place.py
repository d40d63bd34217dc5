"""Where in a picture a concept is drawn that has a region of its own."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.hooks
import torch
from torch import Tensor

# A network halves a latent up to three times: pieces of it begin and end on whole cells of the smallest.
CELLS = 8


@dataclass(frozen=True, eq=False)
class Place:
    """A region, and the hooks that put the concept's weights into the network while it is computed.

    Attributes:
        hooks: ComfyUI's; the very object that the region's conditionings carry.
        box: top, left, bottom, right of what the region covers, in shares of the picture.
    """

    hooks: comfy.hooks.HookGroup
    box: tuple[float, float, float, float]

    def piece(self, latents: Tensor) -> Tensor:
        """What of latents ``(B, 4, h, w)`` lies in the region's box, on whole cells, and at least as much as one cell of the network."""
        top, left, bottom, right = self.box
        height, width = latents.shape[2:]
        rows, columns = _span(top, bottom, height), _span(left, right, width)
        return latents[:, :, rows, columns]


def _span(start: float, end: float, side: int) -> slice:
    first = int(start * side) // CELLS * CELLS
    last = min(-(-round(end * side) // CELLS) * CELLS, side)
    first = max(0, min(first, last - CELLS))
    return slice(first, max(last, min(CELLS, side)))


def box_of(mask: Tensor) -> tuple[float, float, float, float]:
    """Top, left, bottom, right of where a mask ``(H, W)`` is at least half of its largest value, in shares of its size.

    Raises:
        ValueError: the mask is empty.
    """
    strong = mask >= mask.max() / 2 if mask.max() > 0 else torch.zeros_like(mask, dtype=torch.bool)
    rows, columns = strong.any(dim=1).nonzero().flatten(), strong.any(dim=0).nonzero().flatten()
    if not len(rows):
        raise ValueError("the mask is empty: paint where the person is to be")
    height, width = mask.shape
    return (
        float(rows[0]) / height,
        float(columns[0]) / width,
        float(rows[-1] + 1) / height,
        float(columns[-1] + 1) / width,
    )
