"""The square that a person has drawn on the photo in the node's crop editor, or typed: which part is learned."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ....e4t_core.crop import SMALLEST_SIDE, Square
from .photos import PhotoError, named

SHAPE = "left, top and side in pixels, as in 120, 40, 256"
# At most as many digits as a photo can have pixels along a side.
_NUMBERS = re.compile(r"\s*(\d{1,6})\s*[,; ]\s*(\d{1,6})\s*[,; ]\s*(\d{1,6})\s*")


def square_of(text: str, sizes: Sequence[tuple[int, int]]) -> Square | None:
    """The square, which holds for every photo; none where nothing was drawn.

    Args:
        text: left, top and side in whole pixels; empty: nothing was drawn.
        sizes: (height, width) of the photos in pixels.

    Raises:
        PhotoError: it is something else, too small, or does not lie in one of the photos.
    """
    if not text.strip():
        return None
    found = _NUMBERS.fullmatch(text)
    if found is None:
        raise PhotoError(f"The crop's square {text[:40]!r} cannot be read: it is {SHAPE}, or empty.")
    left, top, side = (int(number) for number in found.groups())
    if side < SMALLEST_SIDE:
        raise PhotoError(f"The crop's square is {side} pixels wide: {SMALLEST_SIDE} are the least.")
    for index, (height, width) in enumerate(sizes):
        if left + side > width or top + side > height:
            raise PhotoError(
                f"The crop's square (left {left}, top {top}, side {side}) does not lie in {named(index, len(sizes))},"
                f" which is {width}×{height}: draw it again on this photo, or press Automatic."
            )
    return Square(top, left, side)
