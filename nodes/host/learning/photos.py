"""From an IMAGE and a MASK to what is learned from: a square crop of each photo, at the domain's size."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ....e4t_core.crop import SMALLEST_SIDE, Square, mask_box, middle_square, square_around
from ....e4t_core.methods.e4t.photo_fit import shows_nothing
from . import masks as meaning
from .masks import AUTO, LEARN_HERE, LEAVE_OUT

logger = logging.getLogger(__name__)

# What stands where a picture is transparent: white, in [0, 1], as in most training pictures without a background. The mini world's
# domains explain subjects on white as well as whole photos, and worse on gray, on black and on the subject's mean color.
NEUTRAL = 1.0
# Alpha that differs by less than this is opaque everywhere: rounding.
OPAQUE = 0.01

NOTHING = "The photo shows one color or an even gradient{where}: there is nothing in it that could be learned."
SEEN = "The picture is partly transparent: only what can be seen of it is learned{where}."
TURNED = (
    "The mask marks what is around the subject, as Load Image's does for a cut-out picture, so what it spares is learned"
    "{where}. If that is wrong, set mask_means to '" + LEARN_HERE + "'."
)


class PhotoError(ValueError):
    """An image or mask that cannot be learned from; the message says why."""


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo, whole.

    Attributes:
        picture: ``(3, H, W)`` in [0, 1], as it came in.
        visible: ``(H, W)`` in [0, 1], where it is not transparent; none: all of it.
        mask: ``(H, W)`` in [0, 1], 1 = learn here, not all zero; none: nobody said where.
    """

    picture: Tensor
    visible: Tensor | None
    mask: Tensor | None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.picture.shape[-2], self.picture.shape[-1]

    def box(self) -> tuple[int, int, int, int] | None:
        """The mask's (top, left, bottom, right), where it is above half of its highest value; none without a mask."""
        return None if self.mask is None else mask_box(self.mask)


@dataclass(frozen=True, eq=False)
class Photos:
    """Photos of one concept, whole, and what the artist should know of them, a sentence or two each."""

    photos: tuple[Photo, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class PreparedPhotos:
    """Square crops of n photos of one concept.

    Attributes:
        images: ``(n, S, S, 3)`` in [0, 1]; white where they are transparent.
        masks: ``(n, 1, S, S)`` in [0, 1], 1 = learn here; or none.
        notes: what the artist should know, a sentence or two each.
    """

    images: Tensor
    masks: Tensor | None
    notes: tuple[str, ...] = ()


def read_photos(images: Tensor, masks: Tensor | None, size: int, mask_means: str = AUTO) -> Photos:
    """What is wired in, checked.

    Without a mask, a picture's transparency is its mask. Colors under transparent pixels are never learned: they are
    whatever a program left there, and nobody has seen them.

    Args:
        images: ComfyUI IMAGE ``(n, H, W, C)`` in [0, 1] with C = 3, or 4 (alpha, 1 = opaque); any size.
        masks: ComfyUI MASK ``(n or 1, h, w)`` or ``(h, w)``; any size. All zero: no mask.
        size: side in pixels that is learned from, for what is said of a photo that is too small.
        mask_means: what a mask's 1 means, one of ``masks.MASK_MEANINGS``.

    Raises:
        PhotoError: no image, an image too small, values that are not finite, another number of masks, or a mask or an
            alpha channel that leaves nothing to learn from.
    """
    images, alphas = _checked_images(images, size)
    count, _, height, width = images.shape
    wired = _checked_masks(masks, count, (height, width))
    photos, seen, turned = [], [], []
    for index in range(count):
        # As shares of the highest value: how opaque the brush was does not matter.
        wanted = None if wired is None or not wired[index].any() else wired[index] / wired[index].max()
        visible = None if alphas is None else _visible(alphas[index], named(index, count))
        if wanted is None and visible is not None:
            seen.append(index)
        if wanted is not None and _is_turned(wanted, visible, images[index], mask_means):
            wanted = 1 - wanted
            # What a mask of transparency marks has colors as little as transparent pixels have.
            visible = _least(wanted, visible)
            turned.append(index)
        mask = _least(wanted, visible)
        if mask is not None and not mask.max() > OPAQUE:
            raise PhotoError(
                f"The MASK, read as mask_means = {mask_means!r}, leaves nothing to learn from in {named(index, count)}:"
                f" paint over what is to be learned, or set mask_means to {AUTO!r}."
            )
        photos.append(Photo(images[index], visible, mask))
    notes = [note(SEEN, seen, count), note(TURNED, turned if mask_means == AUTO else [], count)]
    return Photos(tuple(photos), tuple(filter(None, notes)))


def cut(photos: Photos, squares: Sequence[Square], size: int) -> PreparedPhotos:
    """Each photo's square, scaled.

    Args:
        photos: whole.
        squares: one for each, inside it.
        size: side S of the crops in pixels.
    """
    count = len(photos.photos)
    crops, mask_crops, empty = [], [], []
    for index, (photo, square) in enumerate(zip(photos.photos, squares, strict=True)):
        rows, columns = square.window()
        crop = photo.picture[None, :, rows, columns]
        if photo.visible is not None:
            crop = NEUTRAL + photo.visible[rows, columns] * (crop - NEUTRAL)
        crops.append(resize(crop, size, "bicubic"))
        if shows_nothing(crops[-1][0]):
            empty.append(index)
        mask = photo.mask
        # One photo without a mask among others with one is learned from as a whole.
        mask_crops.append(None if mask is None else resize(mask[None, None, rows, columns], size, "bilinear"))
    prepared = torch.cat(crops).movedim(1, -1).contiguous()
    notes = tuple(filter(None, (note(NOTHING, empty, count), *photos.notes)))
    for said in notes:
        logger.info("E4T: %s", said)
    return PreparedPhotos(prepared, _stacked(mask_crops, size), notes)


def usual_square(photo: Photo, margin: float) -> Square:
    """The square around a photo's mask; without one, the largest in its middle.

    Args:
        margin: room on each side of the mask's box, as a share of its longer side.
    """
    box = photo.box()
    return middle_square(photo.size) if box is None else square_around(photo.size, box, margin)


def _checked_images(images: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
    """Colors ``(n, 3, H, W)``, and alpha ``(n, H, W)`` if there is one."""
    if images.ndim != 4 or 0 in images.shape:
        raise PhotoError(f"The IMAGE is empty (shape {tuple(images.shape)}): wire in at least one photo.")
    _, height, width, channels = images.shape
    if min(height, width) < SMALLEST_SIDE:
        raise PhotoError(
            f"The IMAGE is {width}×{height} pixels, too small to learn from: use a photo of {size} pixels or more."
        )
    if channels not in (3, 4):
        raise PhotoError(f"The IMAGE has {channels} channels: use an RGB photo.")
    images = images.detach().float().cpu().movedim(-1, 1)
    if not torch.isfinite(images).all():
        raise PhotoError("The IMAGE holds NaN or infinity: check the node that made it.")
    return images[:, :3], images[:, 3].clamp(0, 1) if channels == 4 else None


def _checked_masks(masks: Tensor | None, count: int, size: tuple[int, int]) -> Tensor | None:
    """Masks ``(count, H, W)``; none where nothing is painted: Load Image always wires one."""
    if masks is None:
        return None
    masks = masks.detach().float().cpu()
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.ndim != 3 or 0 in masks.shape or not torch.isfinite(masks).all():
        raise PhotoError(f"The MASK cannot be used (shape {tuple(masks.shape)}): wire in one mask, or one per photo.")
    if masks.shape[0] not in (1, count):
        raise PhotoError(f"There are {masks.shape[0]} masks for {count} photos: wire in one mask, or one per photo.")
    return meaning.fit(masks, count, size) if masks.any() else None


def _visible(alpha: Tensor, name: str) -> Tensor | None:
    """How visible each pixel is ``(H, W)`` as a share of the most visible one's; none if all are alike."""
    if not alpha.max() > OPAQUE:
        raise PhotoError(f"All of {name} is transparent, so nothing of it can be learned: use one that can be seen.")
    visible = alpha / alpha.max()
    return visible if visible.min() < 1 - OPAQUE else None


def _least(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return second if first is None else first if second is None else torch.minimum(first, second)


def _is_turned(mask: Tensor, visible: Tensor | None, picture: Tensor, mask_means: str) -> bool:
    if mask_means != AUTO:
        return mask_means == LEAVE_OUT
    # A mask of nothing but transparent pixels marks what is to be left out, whatever its shape.
    only_transparent = visible is not None and not (mask * visible).max() > 0.5
    return only_transparent or meaning.marks_surroundings(mask, picture)


def _stacked(crops: list[Tensor | None], size: int) -> Tensor | None:
    whole = torch.ones((1, 1, size, size))
    return None if all(c is None for c in crops) else torch.cat([whole if c is None else c for c in crops])


def named(index: int, count: int) -> str:
    """One of the photos, in words."""
    return "the IMAGE" if count == 1 else f"photo {index + 1} of the IMAGE"


def note(text: str, indices: Sequence[int], count: int, **more: str) -> str:
    """A text with "{where}" in it, which says of which photos it holds unless it holds of all; empty if it holds of none."""
    if not indices:
        return ""
    numbers = ", ".join(str(index + 1) for index in indices)
    where = "" if len(indices) == count else f" (photo {numbers})" if len(indices) == 1 else f" (photos {numbers})"
    return text.format(where=where, **more)


def resize(pictures: Tensor, size: int, mode: str) -> Tensor:
    """Square pictures ``(n, C, s, s)`` at another size, in [0, 1]; those of this size as they are."""
    if pictures.shape[-2:] == (size, size):
        return pictures.clamp(0, 1)
    return F.interpolate(pictures, size=(size, size), mode=mode, antialias=True).clamp(0, 1)
