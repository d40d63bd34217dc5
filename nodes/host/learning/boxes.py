"""Boxes as ComfyUI's nodes give them (BOUNDING_BOX): one, a list of them, or a list for each photo."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .photos import PhotoError, named

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels; the last two lie behind it."""

SHAPE = "a box has x, y, width and height in pixels"


def boxes_of(wired: Any, sizes: Sequence[tuple[int, int]]) -> list[list[Box]] | None:
    """The boxes of each photo from left to right, cut off where the photo ends; none if nothing is wired in.

    One box alone holds for every photo, as does a plain list of them; of a list of lists, each is a photo's.

    Args:
        wired: a dictionary with x, y, width and height (others are ignored), or lists of such.
        sizes: (height, width) of the photos in pixels.

    Raises:
        PhotoError: it is something else, holds lists for another number of photos, or a box without a pixel in its photo.
    """
    if wired is None:
        return None
    if isinstance(wired, Mapping):
        wired = [wired]
    if not isinstance(wired, list | tuple):
        raise PhotoError(f"The boxes are a {type(wired).__name__}: wire in BOUNDING_BOX; {SHAPE}.")
    nested = [isinstance(part, list | tuple) for part in wired]
    if any(nested) and not all(nested):
        raise PhotoError(
            "The boxes are single ones and lists mixed: wire in a list for each photo, or one list for all."
        )
    lists = list(wired) if nested and nested[0] else [list(wired)]
    if len(lists) not in (1, len(sizes)):
        raise PhotoError(
            f"There are boxes for {len(lists)} photos, but {len(sizes)} photos: wire in one list per photo."
        )
    if len(lists) == 1:
        lists *= len(sizes)
    return [
        sorted((_box(one, size, named(index, len(sizes))) for one in boxes), key=lambda box: (box[1] + box[3], box))
        for index, (boxes, size) in enumerate(zip(lists, sizes, strict=True))
    ]


def _box(one: Any, size: tuple[int, int], name: str) -> Box:
    values = [one.get(key) if isinstance(one, Mapping) else None for key in ("x", "y", "width", "height")]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < 4 or not all(math.isfinite(value) for value in numbers):
        raise PhotoError(f"The box {str(one)[:80]} cannot be used: {SHAPE}.")
    x, y, width, height = numbers
    top, left = (min(max(math.floor(at), 0), end) for at, end in zip((y, x), size, strict=True))
    bottom, right = (min(max(math.ceil(at), 0), end) for at, end in zip((y + height, x + width), size, strict=True))
    if bottom <= top or right <= left:
        raise PhotoError(
            f"The box x {x:g}, y {y:g}, width {width:g}, height {height:g} holds no pixel of {name}, which is"
            f" {size[1]}×{size[0]}: wire in boxes of this photo."
        )
    return top, left, bottom, right
