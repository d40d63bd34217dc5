"""`python -m devtools.icon`: draws docs/icon.png, the pack's picture in ComfyUI's registry; runs in `.venv`.

A photo of a face and the star of the trigger `S*`. 400x400 pixels: the registry takes at most 800x400.
"""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw

from .places import REPOSITORY

ICON = REPOSITORY / "docs" / "icon.png"
SIZE = 400
SHARP = 4
"""Drawn this many times larger, then made smaller: that gives smooth edges."""

TOP, BOTTOM = (86, 70, 198), (28, 24, 74)
CARD, SKY = (250, 248, 243), (150, 205, 222)
SKIN, HAIR, COAT = (244, 200, 160), (92, 52, 38), (214, 92, 92)
DARK, STAR, EDGE = (52, 34, 40), (255, 202, 58), (28, 24, 74)


def draw() -> Image.Image:
    """The icon, RGBA 400x400."""
    side = SIZE * SHARP
    ground = Image.linear_gradient("L").resize((side, side))
    icon = Image.composite(Image.new("RGB", (side, side), BOTTOM), Image.new("RGB", (side, side), TOP), ground)
    card = photo().rotate(8, Image.Resampling.BICUBIC, expand=True)
    icon.paste(card, (_px(20), _px(8)), card)
    star(ImageDraw.Draw(icon), (_px(298), _px(296)), _px(68))
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side - 1, side - 1), _px(72), fill=255)
    icon.putalpha(mask)
    return icon.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def photo() -> Image.Image:
    """A print with a white border, and a person on it."""
    width, height, border = _px(250), _px(300), _px(20)
    card = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    ImageDraw.Draw(card).rounded_rectangle((0, 0, width - 1, height - 1), _px(14), fill=CARD)
    picture = Image.new("RGB", (width - 2 * border, width - 2 * border), SKY)
    person(ImageDraw.Draw(picture), picture.width / 210)
    card.paste(picture, (border, border))
    return card


def person(pen: ImageDraw.ImageDraw, unit: float) -> None:
    """A face with hair, on a picture of 210x210 units."""

    def at(*numbers: float) -> tuple[float, ...]:
        return tuple(number * unit for number in numbers)

    pen.ellipse(at(48, 22, 162, 150), fill=HAIR)
    pen.rectangle(at(48, 84, 162, 150), fill=HAIR)
    pen.ellipse(at(22, 158, 188, 290), fill=COAT)
    pen.rounded_rectangle(at(88, 120, 122, 180), 16 * unit, fill=SKIN)
    pen.ellipse(at(62, 44, 148, 152), fill=SKIN)
    pen.chord(at(56, 24, 154, 112), 182, 358, fill=HAIR)
    for x in (86, 124):
        pen.ellipse(at(x - 6, 88, x + 6, 102), fill=DARK)
    pen.arc(at(84, 98, 126, 132), 25, 155, fill=DARK, width=round(5 * unit))


def star(pen: ImageDraw.ImageDraw, center: tuple[int, int], radius: int) -> None:
    """An asterisk of three rounded bars, with an edge that sets it off from the photo."""
    for color, width, reach in ((EDGE, _px(46), radius + _px(2)), (STAR, _px(28), radius - _px(4))):
        for turn in range(3):
            angle = math.pi * (turn / 3 + 0.5)
            x, y = math.cos(angle) * reach, math.sin(angle) * reach
            ends = [(center[0] - x, center[1] - y), (center[0] + x, center[1] + y)]
            pen.line(ends, fill=color, width=width)
            for end in ends:
                pen.circle(end, width / 2, fill=color)


def _px(length: float) -> int:
    """A length in the icon's pixels as one in the larger drawing's."""
    return round(length * SHARP)


def main(path: Path = ICON) -> None:
    draw().save(path, optimize=True)


if __name__ == "__main__":
    main()
