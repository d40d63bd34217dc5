"""The report's picture: identity of every class at the left, identity against prompt at the right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .intervals import Interval
from .tables import Adherence, Figures

WIDTH, ROW, LEFT, TOP, BOTTOM, BESIDE = 460, 34, 130, 50, 60, 100
PAPER, INK, GRAY, LINE = "white", "black", "#666666", "#dddddd"
COLORS = ("#1f5fa8", "#c0561a", "#2b8a3e", "#8e44ad")


def plot(judged: Mapping[str, Sequence[Figures]], adherence: Sequence[Adherence], path: Path) -> None:
    """Writes the picture, as PNG.

    Args:
        judged: figures by the name of each network; 0 is a stranger's photo, 1 the learned photo itself.
        adherence: what CLIP says of the same classes; the right half is left out without it.
        path: of the file.
    """
    names = [row.group for row in next(iter(judged.values()))]
    height = max(ROW * len(names) + 20, 250)
    legend = TOP + height + BOTTOM
    width = LEFT + WIDTH + 30 + (BESIDE + WIDTH if adherence else 0)
    image = Image.new("RGB", (width, legend + 22 * len(judged) + 10), PAPER)
    draw = ImageDraw.Draw(image)
    shares = [row.share for rows in judged.values() for row in rows]
    _left(draw, judged, names, height, _range(shares))
    if adherence:
        _right(draw, judged, adherence, height, _range(shares))
    for number, name in enumerate(judged):
        top = legend + 22 * number
        draw.ellipse((LEFT, top + 4, LEFT + 10, top + 14), _color(number))
        draw.text((LEFT + 18, top), f"identity by {name}", INK, _font(14))
    image.save(path, "PNG", optimize=True)


def _left(
    draw: ImageDraw.ImageDraw,
    judged: Mapping[str, Sequence[Figures]],
    names: Sequence[str],
    height: int,
    ends: tuple[float, float],
) -> None:
    draw.text((LEFT, 10), "identity, by kind of prompt", INK, _font(16))
    draw.rectangle((LEFT, TOP, LEFT + WIDTH, TOP + height), outline=GRAY)

    def across(value: float) -> float:
        return LEFT + WIDTH * min(1.0, max(0.0, (value - ends[0]) / (ends[1] - ends[0])))

    for tick in _ticks(*ends):
        draw.line((across(tick), TOP, across(tick), TOP + height), GRAY if tick in (0.0, 1.0) else LINE)
        draw.text((across(tick), TOP + height + 6), f"{tick:g}", GRAY, _font(13), anchor="ma")
    draw.text(
        (LEFT + WIDTH / 2, TOP + height + 28), "0: a stranger's photo   1: the learned photo", INK, _font(14), "ma"
    )
    for place, name in enumerate(names):
        middle = TOP + 10 + (height - 20) * (place + 0.5) / len(names)
        draw.text((LEFT - 8, middle), name[:18], INK, _font(14), anchor="rm")
        for number, rows in enumerate(judged.values()):
            row = next((row for row in rows if row.group == name), None)
            if row is None:
                continue
            y = middle + 8 * (number - (len(judged) - 1) / 2)
            draw.line((across(row.share.low), y, across(row.share.high), y), _color(number), 2)
            _dot(draw, across(row.share.value), y, _color(number))


def _right(
    draw: ImageDraw.ImageDraw,
    judged: Mapping[str, Sequence[Figures]],
    adherence: Sequence[Adherence],
    height: int,
    ends: tuple[float, float],
) -> None:
    left = LEFT + WIDTH + BESIDE
    prompts = {row.group: row.prompt.value for row in adherence}
    low, high = min(prompts.values()), max(prompts.values())
    room = max(0.25 * (high - low), 0.01)
    low, high = low - room, high + room
    draw.text((left, 10), "identity against prompt", INK, _font(16))
    draw.rectangle((left, TOP, left + WIDTH, TOP + height), outline=GRAY)
    for tick in _ticks(*ends):
        y = TOP + height * (1 - (tick - ends[0]) / (ends[1] - ends[0]))
        draw.line((left, y, left + WIDTH, y), GRAY if tick in (0.0, 1.0) else LINE)
        draw.text((left - 8, y), f"{tick:g}", GRAY, _font(13), anchor="rm")
    for part in range(5):
        value = low + (high - low) * part / 4
        draw.text((left + WIDTH * part / 4, TOP + height + 6), f"{value:.3f}", GRAY, _font(13), anchor="ma")
    draw.text((left + WIDTH / 2, TOP + height + 28), "prompt score by CLIP", INK, _font(14), anchor="ma")
    for number, rows in enumerate(judged.values()):
        for row in rows:
            if row.group not in prompts:
                continue
            x = left + WIDTH * (prompts[row.group] - low) / (high - low)
            y = TOP + height * (1 - (row.share.value - ends[0]) / (ends[1] - ends[0]))
            _dot(draw, x, y, _color(number))
            if number == 0:
                draw.text((x + 8, y - 14), row.group[:18], GRAY, _font(12))


def _range(shares: Sequence[Interval]) -> tuple[float, float]:
    """What an axis of shares shows: floor and ceiling, and whatever lies beyond them, within reason."""
    limits = [value for share in shares for value in (share.low, share.high, share.value) if math.isfinite(value)]
    low, high = min([0.0, *limits]), max([1.0, *limits])
    return max(-3.0, math.floor(10 * low - 0.5) / 10), min(3.0, math.ceil(10 * high + 0.5) / 10)


def _ticks(low: float, high: float) -> list[float]:
    step = 0.2 if high - low < 2 else 0.5
    return [round(step * number, 1) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, color: str) -> None:
    draw.ellipse((x - 5, y - 5, x + 5, y + 5), color)


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
