"""The compact benchmark's picture: size against identity at the left, identity against prompt at the right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from .compact_report import BYTES_GATE, IDENTITY_GATE, PROMPT_GATE, Result
from .contact_sheet import GRAY, INK, PAPER, font

PANEL, LEFT, TOP, BOTTOM = 470, 70, 40, 60
ONE, STATIC, FACTORS, LINE = "#1f5fa8", "#c0561a", "#2b8a3e", "#dddddd"


class Panel:
    """One plot with its own axes."""

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


def plot(results: Sequence[Result], path: Path) -> None:
    """Writes the picture; identity is the mean of the shares of NAMED and of likeness. Thin black lines are the gates."""
    points = [(r.bytes / 1e6, (r.named.value + r.likeness.value) / 2, r.prompt.value) for r in results]
    low = math.floor(20 * min(0.9, *(p[1] for p in points))) / 20
    high = math.ceil(20 * max(1.05, *(p[1] for p in points), *(p[2] for p in points))) / 20
    lowest = math.floor(20 * min(0.9, *(p[2] for p in points))) / 20
    legend = TOP + PANEL + BOTTOM + 8
    image = Image.new("RGB", (2 * (PANEL + LEFT) + 40, legend + 20 * len(results) + 10), PAPER)
    draw = ImageDraw.Draw(image)
    sizes = (1.0, 4000.0)
    share = "identity"
    first = Panel(draw, LEFT, sizes, (low, high), "size against identity", ("MB at SD 1.5", share), True)
    second = Panel(
        draw, 2 * LEFT + PANEL + 10, (low, high), (lowest, high), "identity against prompt", (share, "prompt"), False
    )
    steps = [round(low + 0.05 * i, 2) for i in range(round((high - low) / 0.05) + 1)]
    upward = [round(lowest + 0.05 * i, 2) for i in range(round((high - lowest) / 0.05) + 1)]
    first.ticks([1, 3, 10, 30, 100, 300, 1000], steps)
    second.ticks(steps, upward)
    first.gate(BYTES_GATE / 1e6, IDENTITY_GATE)
    second.gate(IDENTITY_GATE, PROMPT_GATE)
    for number, (result, (size, identity, prompt)) in enumerate(zip(results, points, strict=True), 1):
        color = STATIC if result.form.static else FACTORS if result.form.unet_rank else ONE
        first.dot(size, identity, number, color)
        second.dot(identity, prompt, number, color)
        draw.text((LEFT, legend + 20 * (number - 1)), f"{number}  {result.form.name}: {size:.2f} MB", color, font(14))
    image.save(path, optimize=True)
