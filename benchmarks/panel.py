"""One plot with its own axes, drawn with Pillow: the benchmarks' pictures look the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import ImageDraw

from .contact_sheet import GRAY, INK, font

PANEL, LEFT, TOP, BOTTOM = 470, 70, 40, 60
"""Pixels: a plot's side, and the room beside, above and below it."""
LINE = "#dddddd"


class Panel:
    """The plot's frame, at once; what is in it, call by call.

    Args:
        draw: of the picture.
        left: of the frame, in pixels.
        x, y: the axes' ends; what lies outside is drawn at the rim.
        title: above it.
        names: of the axes.
        logarithmic: the axis of x.
    """

    def __init__(
        self,
        draw: ImageDraw.ImageDraw,
        left: int,
        x: tuple[float, float],
        y: tuple[float, float],
        title: str,
        names: tuple[str, str],
        logarithmic: bool,
    ) -> None:
        self.draw, self.left, self.x, self.y, self.logarithmic = draw, left, x, y, logarithmic
        draw.rectangle((left, TOP, left + PANEL, TOP + PANEL), outline=GRAY)
        draw.text((left, 10), title, INK, font(16))
        draw.text((left + PANEL // 2 - 60, TOP + PANEL + 34), names[0], INK, font(14))
        draw.text((left - 62, TOP - 20), names[1], INK, font(14))

    def place(self, x: float, y: float) -> tuple[float, float]:
        low, high = self.x
        across = math.log(x / low) / math.log(high / low) if self.logarithmic else (x - low) / (high - low)
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + PANEL * min(1.0, max(0.0, across)), TOP + PANEL * (1 - min(1.0, max(0.0, up)))

    def ticks(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        for x in xs:
            px = self.place(x, self.y[0])[0]
            self.draw.line((px, TOP, px, TOP + PANEL), LINE)
            self.draw.text((px - 12, TOP + PANEL + 8), f"{x:g}", GRAY, font(13))
        for y in ys:
            py = self.place(self.x[0], y)[1]
            self.draw.line((self.left, py, self.left + PANEL, py), LINE)
            self.draw.text((self.left - 44, py - 8), f"{y:.2f}", GRAY, font(13))

    def gate(self, x: float | None, y: float | None) -> None:
        if x is not None:
            px = self.place(x, self.y[0])[0]
            self.draw.line((px, TOP, px, TOP + PANEL), INK)
        if y is not None:
            py = self.place(self.x[0], y)[1]
            self.draw.line((self.left, py, self.left + PANEL, py), INK)

    def dot(self, x: float, y: float, number: int, color: str) -> None:
        px, py = self.place(x, y)
        self.draw.ellipse((px - 5, py - 5, px + 5, py + 5), color)
        self.draw.text((px + 7, py - 15), str(number), color, font(14))

    def line(self, points: Sequence[tuple[float, float]], color: str) -> None:
        """A line through points, from one to the next."""
        self.draw.line([self.place(x, y) for x, y in points], color, 2)
