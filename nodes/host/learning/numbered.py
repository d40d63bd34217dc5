"""The whole photo with the subjects that were found in it, numbered as the node counts them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .crops import Candidates, Crops
from .photos import Photo, Photos
from .pictures import PAPER, PREVIEW

CHOSEN, OTHER, INK = (255, 170, 0), (250, 250, 250), (20, 20, 20)


def overview(photos: Photos, crops: Crops) -> Image.Image | None:
    """The photos in which there are several subjects, below one another, 256 pixels wide; none, if there is no such photo."""
    if not crops.candidates:
        return None
    sheets = [numbered(photos.photos[index], found) for index, found in sorted(crops.candidates.items())]
    whole = Image.new("RGB", (PREVIEW, sum(sheet.height for sheet in sheets)), PAPER)
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def numbered(photo: Photo, found: Candidates) -> Image.Image:
    """A photo with each subject's square and number; the chosen one's in orange."""
    array = (photo.picture.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    height, width = photo.size
    scale = PREVIEW / width
    picture = Image.fromarray(np.ascontiguousarray(array)).resize((PREVIEW, max(1, round(height * scale))))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(16)
    # The chosen one last, so that no other's line crosses it.
    for number in sorted(range(len(found.squares)), key=lambda number: number == found.number):
        square = found.squares[number]
        color = CHOSEN if number == found.number else OTHER
        left, top, end = (at * scale for at in (square.left, square.top, square.side))
        draw.rectangle((left, top, left + end - 1, top + end - 1), outline=color, width=2)
        draw.rectangle((left, top, left + 16, top + 18), fill=color)
        draw.text((left + 4, top), str(number + 1), fill=INK, font=font)
    return picture
