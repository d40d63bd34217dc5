"""From an IMAGE and a MASK to what is learned from: a square crop around the mask, at the domain's size."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

# A smaller side holds nothing that could be recognised: probably an empty or placeholder image.
SMALLEST_SIDE = 8


class PhotoError(ValueError):
    """An image or mask that cannot be learned from; the message says why."""


@dataclass(frozen=True, eq=False)
class PreparedPhotos:
    """Square crops of n photos of one concept.

    Attributes:
        images: ``(n, S, S, 3)`` in [0, 1].
        masks: ``(n, 1, S, S)`` in [0, 1], 1 = learn here; or none.
        note: what the artist should know, or empty.
    """

    images: Tensor
    masks: Tensor | None
    note: str = ""


def prepare_photos(images: Tensor, masks: Tensor | None, size: int, margin: float) -> PreparedPhotos:
    """Crop and scale photos.

    Args:
        images: ComfyUI IMAGE ``(n, H, W, C)`` in [0, 1] with C = 3, or 4 (alpha is dropped); any size.
        masks: ComfyUI MASK ``(n or 1, h, w)`` or ``(h, w)``, 1 = learn here; any size. All zero: no mask.
        size: side S of the crops in pixels.
        margin: room on each side of a mask's box, as a share of its longer side.

    Raises:
        PhotoError: no image, an image too small, values that are not finite, or another number of masks.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise PhotoError(f"The IMAGE is empty (shape {tuple(images.shape)}): wire in at least one photo.")
    count, height, width, channels = images.shape
    if min(height, width) < SMALLEST_SIDE:
        raise PhotoError(
            f"The IMAGE is {width}×{height} pixels, too small to learn from: use a photo of {size} pixels or more."
        )
    if channels not in (3, 4):
        raise PhotoError(f"The IMAGE has {channels} channels: use an RGB photo.")
    images = images[..., :3].detach().float().cpu().movedim(-1, 1)
    if not torch.isfinite(images).all():
        raise PhotoError("The IMAGE holds NaN or infinity: check the node that made it.")
    masks, note = _fit_masks(masks, count, (height, width))
    crops, mask_crops = [], []
    for index in range(count):
        mask = None if masks is None else masks[index]
        top, left, side = crop_square((height, width), mask if mask is not None and mask.any() else None, margin)
        window = (slice(top, top + side), slice(left, left + side))
        crops.append(_resize(images[index : index + 1, :, window[0], window[1]], size, "bicubic"))
        if mask is not None:
            crop = _resize(mask[None, None, window[0], window[1]], size, "bilinear")
            # One photo without a mask among others with one is learned from as a whole.
            mask_crops.append(crop if mask.any() else torch.ones_like(crop))
    prepared = torch.cat(crops).movedim(1, -1).contiguous()
    return PreparedPhotos(prepared, torch.cat(mask_crops) if mask_crops else None, note)


def crop_square(size: tuple[int, int], mask: Tensor | None, margin: float) -> tuple[int, int, int]:
    """Top, left and side in pixels of the square to learn from.

    Args:
        size: (height, width) of the photo.
        mask: ``(height, width)``, not all zero, or none: then the largest square in the middle.
        margin: room on each side of the mask's box, as a share of its longer side.
    """
    height, width = size
    if mask is None:
        side = min(height, width)
        return (height - side) // 2, (width - side) // 2, side
    rows, columns = (
        torch.nonzero(mask.amax(dim=1) > 0.5 * mask.max()),
        torch.nonzero(mask.amax(dim=0) > 0.5 * mask.max()),
    )
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    longer = max(bottom - top, right - left)
    side = max(SMALLEST_SIDE, min(round(longer * (1 + 2 * margin)), height, width))
    # Centred on the box, moved back inside the photo where it would stick out.
    y = min(max((top + bottom - side) // 2, 0), height - side)
    x = min(max((left + right - side) // 2, 0), width - side)
    return y, x, side


def _fit_masks(masks: Tensor | None, count: int, size: tuple[int, int]) -> tuple[Tensor | None, str]:
    if masks is None:
        return None, ""
    masks = masks.detach().float().cpu()
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.ndim != 3 or 0 in masks.shape or not torch.isfinite(masks).all():
        raise PhotoError(f"The MASK cannot be used (shape {tuple(masks.shape)}): wire in one mask, or one per photo.")
    if masks.shape[0] not in (1, count):
        raise PhotoError(f"There are {masks.shape[0]} masks for {count} photos: wire in one mask, or one per photo.")
    if not masks.any():
        note = "The mask is all zero (nothing is painted), so it counts as no mask."
        logger.info("E4T: %s", note)
        return None, note
    masks = masks.expand(count, -1, -1).clamp(0, 1)
    if masks.shape[-2:] != size:
        masks = F.interpolate(masks[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
    return masks, ""


def _resize(pictures: Tensor, size: int, mode: str) -> Tensor:
    if pictures.shape[-2:] == (size, size):
        return pictures.clamp(0, 1)
    return F.interpolate(pictures, size=(size, size), mode=mode, antialias=True).clamp(0, 1)
