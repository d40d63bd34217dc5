"""Masks of regions: drawn side by side or one above the other, or given; and what they leave to the rest of the picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ACROSS, DOWN = "left to right", "top to bottom"
LAYOUTS = (ACROSS, DOWN)
# Of drawn masks: ComfyUI scales masks to the latent.
SIDE = 512
# Given masks are softened at this size at most.
SOFTENED = 1024
LEAST = 1e-3


def drawn(count: int, layout: str, feather: float) -> list[Tensor]:
    """Masks ``(SIDE, SIDE)`` of equal parts of the picture; neighbors cross over within ``feather``, a share of a part."""
    place = (torch.arange(SIDE) + 0.5) / SIDE * count
    reach = max(feather, 1e-6)
    masks = []
    for number in range(count):
        # 1 within the part, falling to 0 over the feather that lies half on either side of its border.
        left = torch.ones(SIDE) if number == 0 else ((place - number) / reach + 0.5).clamp(0, 1)
        right = torch.ones(SIDE) if number == count - 1 else ((number + 1 - place) / reach + 0.5).clamp(0, 1)
        line = left * right
        masks.append((line[None, :] if layout == ACROSS else line[:, None]).expand(SIDE, SIDE).clone())
    return masks


def given(masks: Sequence[Tensor | None], feather: float) -> list[Tensor]:
    """Masks as they were wired in, ``(1, H, W)`` or ``(H, W)`` in 0-1, with soft edges, ``(h, w)``.

    Args:
        feather: how far an edge is softened, as a share of the picture's shorter side.

    Raises:
        ValueError: one is missing, empty, or a batch; one sentence that says which.
    """
    made = []
    for number, mask in enumerate(masks, 1):
        if mask is None:
            raise ValueError(f"mask_{number} is missing: wire in a mask for every concept, or none to have them drawn.")
        flat = mask[0] if mask.ndim == 3 and mask.shape[0] == 1 else mask
        if flat.ndim != 2:
            raise ValueError(f"mask_{number} holds {mask.shape[0]} masks: wire in one.")
        flat = torch.nan_to_num(flat.detach().float().cpu()).clamp(0, 1)
        if not flat.max() > 0:
            raise ValueError(f"mask_{number} is empty: paint where its concept is to be.")
        made.append(_softened(flat, feather))
    return made


def _softened(mask: Tensor, feather: float) -> Tensor:
    height, width = mask.shape
    shrink = max(1.0, max(height, width) / SOFTENED)
    size = max(1, round(height / shrink)), max(1, round(width / shrink))
    small = F.interpolate(mask[None, None], size=size, mode="bilinear", antialias=True)
    # Two means over a window are a tent: soft, and no longer than twice the window.
    reach = round(feather * min(size) / 2)
    if reach < 1:
        return small[0, 0]
    for _ in range(2):
        padded = F.pad(small, (reach, reach, reach, reach), mode="replicate") if reach < min(size) else small
        small = F.avg_pool2d(padded, 2 * reach + 1, stride=1) if padded is not small else small
    return small[0, 0]


def rest(masks: Sequence[Tensor], inside: float) -> Tensor:
    """Where the picture belongs to no region, ``(h, w)`` of the largest mask; within regions it is at least ``inside``."""
    height, width = max(m.shape[0] for m in masks), max(m.shape[1] for m in masks)
    alike = [F.interpolate(m[None, None], size=(height, width), mode="bilinear")[0, 0] for m in masks]
    left = 1 - torch.stack(alike).sum(dim=0)
    # Rounding alone is worth no pass of the network.
    return torch.where(left > LEAST, left, 0.0).clamp(inside, 1)
