"""Squares in a photo: which part of it is learned from. Whole pixels; no square leaves its photo."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# A smaller side holds nothing that could be recognized.
SMALLEST_SIDE = 8
CROP_MARGIN = 0.25
"""Room around a mask's box, as a share of its longer side, where no domain says it."""


@dataclass(frozen=True, order=True)
class Square:
    """A square of pixels: rows ``top`` to ``top + side``, columns ``left`` to ``left + side``."""

    top: int
    left: int
    side: int

    @property
    def middle(self) -> tuple[float, float]:
        """(row, column) of its middle."""
        return self.top + self.side / 2, self.left + self.side / 2

    def window(self) -> tuple[slice, slice]:
        """Rows and columns, to cut it out of ``(..., H, W)``."""
        return slice(self.top, self.top + self.side), slice(self.left, self.left + self.side)

    def common(self, other: Square) -> int:
        """Pixels that lie in both."""
        rows = min(self.top + self.side, other.top + other.side) - max(self.top, other.top)
        columns = min(self.left + self.side, other.left + other.side) - max(self.left, other.left)
        return max(0, rows) * max(0, columns)

    def overlap(self, other: Square) -> float:
        """Share of what both cover together that both cover: 1 for the same square, 0 for apart."""
        common = self.common(other)
        return common / (self.side**2 + other.side**2 - common)

    def same_place(self, other: Square) -> float:
        """Share of the smaller one that lies in the other."""
        return self.common(other) / min(self.side, other.side) ** 2


def middle_square(size: tuple[int, int]) -> Square:
    """The largest square in the middle of a photo of (height, width) pixels."""
    height, width = size
    side = min(height, width)
    return Square((height - side) // 2, (width - side) // 2, side)


def square_at(size: tuple[int, int], middle: tuple[float, float], side: float) -> Square:
    """The square of about this side around (row, column), made smaller and moved where it would leave the photo."""
    height, width = size
    whole = max(min(SMALLEST_SIDE, height, width), min(round(side), height, width))
    top, left = (
        min(max(math.floor(at - whole / 2 + 0.5), 0), end - whole)
        for at, end in zip(middle, (height, width), strict=True)
    )
    return Square(top, left, whole)


def mask_box(mask: Tensor) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of where a mask ``(H, W)``, not all 0, is above half of its highest value."""
    high = mask > 0.5 * mask.max()
    rows, columns = (torch.nonzero(high.any(dim=dim)) for dim in (1, 0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def square_around(size: tuple[int, int], box: tuple[int, int, int, int], margin: float) -> Square:
    """The square around a box, with room on each side of it.

    Args:
        size: (height, width) of the photo.
        box: (top, left, bottom, right) in pixels; the last two lie behind it.
        margin: room on each side, as a share of the box's longer side; less where the photo ends.
    """
    height, width = size
    top, left, bottom, right = box
    longer = max(bottom - top, right - left)
    side = max(SMALLEST_SIDE, min(round(longer * (1 + 2 * margin)), height, width))
    # Centered on the box, moved back inside the photo where it would stick out.
    y = min(max((top + bottom - side) // 2, 0), height - side)
    x = min(max((left + right - side) // 2, 0), width - side)
    return Square(y, x, side)


def grid(size: tuple[int, int], side: int, step: float) -> list[Square]:
    """Squares of one side that cover a photo, each at most ``step`` of its side from the next, and the middle one.

    Raises:
        ValueError: the side is longer than the photo's.
    """
    if side > min(size):
        raise ValueError(f"Squares of {side} pixels do not fit into a photo of {size[1]}×{size[0]}.")

    def starts(length: int) -> list[int]:
        gaps = math.ceil((length - side) / max(1.0, side * step))
        return [round(number * (length - side) / gaps) for number in range(gaps + 1)] if gaps else [0]

    squares = [Square(top, left, side) for top in starts(size[0]) for left in starts(size[1])]
    middle = Square((size[0] - side) // 2, (size[1] - side) // 2, side)
    return squares if middle in squares else [*squares, middle]


def around(size: tuple[int, int], square: Square, step: float) -> list[Square]:
    """The neighbors of a square, all inside the photo: moved by ``step`` of its side each way, and smaller and larger."""
    y, x = square.middle
    moves = ((-step, 0.0), (step, 0.0), (0.0, -step), (0.0, step))
    moved = [square_at(size, (y + down * square.side, x + right * square.side), square.side) for down, right in moves]
    scaled = [square_at(size, (y, x), square.side * factor) for factor in (1 / (1 + step), 1 + step)]
    return [near for near in dict.fromkeys([*moved, *scaled]) if near != square]


def about_corners(size: tuple[int, int], square: Square, step: float) -> list[Square]:
    """Squares smaller and larger by ``step`` that keep a corner, all inside the photo.

    A frame that is too large mostly touches its subject on one side.
    """
    y, x = square.middle
    near = []
    for factor in (1 / (1 + step), 1 + step):
        slack = (1 - factor) / 2 * square.side
        middles = [(y + down * slack, x + right * slack) for down in (-1, 1) for right in (-1, 1)]
        near += [square_at(size, middle, square.side * factor) for middle in middles]
    return [one for one in dict.fromkeys(near) if one != square]


def within(square: Square, shares: Iterable[float]) -> list[Square]:
    """Smaller squares in a square: in its middle, at its sides and in its corners, of these shares of its side."""
    inner: list[Square] = []
    for share in shares:
        side = max(SMALLEST_SIDE, round(share * square.side))
        slack = square.side - side
        if slack > 0:
            steps = (0, slack // 2, slack)
            inner += [Square(square.top + down, square.left + right, side) for down in steps for right in steps]
    return list(dict.fromkeys(inner))
