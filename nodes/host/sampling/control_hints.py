"""ControlNet in regions: a region that is a picture of its own is told by its own part of the hint.

ComfyUI scales a hint to whatever is computed (comfy/controlnet.py), so that a conditioning with an area would be told by the
whole hint, squeezed into the area. Regions of this pack get copies of the ControlNet with the part of the hint that lies in them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import comfy.utils
import torch
from comfy.controlnet import ControlBase
from torch import Tensor

from .place import Place

Conds = dict[str, list[dict[str, Any]] | None]
# Pixels of a hint for each cell of a latent.
CELL = 8


def with_own_hints(conds: Conds, places: Collection[Place], size: tuple[int, int]) -> Conds:
    """Conditionings by role, of which those of regions have ControlNets of their own; nothing that is given is changed.

    Args:
        conds: before ComfyUI has prepared them for sampling.
        places: of the regions; a conditioning that carries a place's hooks is of it.
        size: (h, w) of the latents.
    """
    made: dict[tuple[int, Any], ControlBase] = {}

    def own(cond: dict[str, Any]) -> dict[str, Any]:
        control, area = cond.get("control"), cond.get("area")
        if control is None or area is None or not any(cond.get("hooks") is place.hooks for place in places):
            return cond
        # One for positive and negative, so that ComfyUI goes on computing them together.
        key = id(control), area
        if key not in made:
            made[key] = _cut(control, *_window(area, size), size)
        return {**cond, "control": made[key]}

    return {role: group and [own(cond) for cond in group] for role, group in conds.items()}


def _window(area: Sequence[Any], size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of latents that ComfyUI computes for an area (comfy/samplers.py)."""
    if area[0] == "percentage":
        high, wide, top, left = (round(share * side) for share, side in zip(area[1:], (*size, *size), strict=True))
    else:
        high, wide, top, left = area
    return slice(top, top + max(1, high)), slice(left, left + max(1, wide))


def _cut(control: ControlBase, rows: slice, columns: slice, size: tuple[int, int]) -> ControlBase:
    own = control.copy()

    def part(hint: Tensor) -> Tensor:
        # As ComfyUI scales a hint that is for the whole picture.
        whole = comfy.utils.common_upscale(hint, size[1] * CELL, size[0] * CELL, control.upscale_algorithm, "center")
        return whole[..., _pixels(rows), _pixels(columns)]

    hint = control.cond_hint_original
    if torch.is_tensor(hint) and hint.ndim == 4:
        own.cond_hint_original = part(hint)
        own.extra_concat_orig = [part(mask) if mask.ndim == 4 else mask for mask in control.extra_concat_orig]
    if control.previous_controlnet is not None:
        own.set_previous_controlnet(_cut(control.previous_controlnet, rows, columns, size))
    return own


def _pixels(cells: slice) -> slice:
    return slice(cells.start * CELL, cells.stop * CELL)


def control_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a conditioning says of its ControlNet, for another one beside it."""
    return {key: values[key] for key in ("control", "control_apply_to_uncond") if key in values}
