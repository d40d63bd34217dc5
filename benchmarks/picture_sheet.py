"""A sheet of pictures with a title for each column and each row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from .contact_sheet import GRAY, INK, PAPER, font

GAP, LABEL = 6, 22


def sheet(rows: Sequence[Sequence[Tensor | None]], columns: Sequence[str], titles: Sequence[str], path: Path) -> None:
    """Writes a JPEG or PNG, by the path's ending.

    Args:
        rows: of pictures ``(3, H, W)`` in [0, 1], all of one size; None leaves a place empty.
        columns: a title for each.
        titles: one below each row.
        path: of the file.
    """
    height, width = next(one for row in rows for one in row if one is not None).shape[-2:]
    across, down = width + GAP, height + LABEL + GAP
    image = Image.new("RGB", (len(columns) * across + GAP, LABEL + len(rows) * down + GAP), PAPER)
    draw = ImageDraw.Draw(image)
    for number, title in enumerate(columns):
        draw.text((GAP + number * across, 4), title, INK, font(13))
    for place, (row, title) in enumerate(zip(rows, titles, strict=True)):
        top = LABEL + place * down
        for number, picture in enumerate(row):
            if picture is not None:
                pixels = (picture * 255).round().byte().movedim(0, -1).numpy()
                image.paste(Image.fromarray(np.ascontiguousarray(pixels)), (GAP + number * across, top))
        draw.text((GAP, top + height + 2), title, GRAY, font(13))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=88, optimize=True)
