"""How a data set is prepared, and what that makes of one picture."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from .dataset_layouts import LAYOUTS
from .pictures import DataError, open_rgb, picture_header

WRITTEN = {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}
"""File extension -> Pillow's format, of what pictures are stored as."""
EXTENSION_OF = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}
"""Pillow's format -> file extension, of what pictures are that are stored as they are; MPO is a phone's JPEG."""


@dataclass(frozen=True)
class Preparation:
    """How a data set is turned into shards; a run that goes on must be given the same.

    Attributes:
        layout: one of ``layouts.LAYOUTS``.
        side: the shorter side is reduced to this many pixels, never enlarged; 0 stores every file as it is.
        picture: "jpg", "webp" or "png".
        quality: of JPEG or WebP, 1-100.
        per_shard: entries per shard.
        seed: of the shuffling.

    Raises:
        DataError: a value is out of its range.
    """

    layout: str
    side: int = 512
    picture: str = "jpg"
    quality: int = 95
    per_shard: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise DataError(f"Layout {self.layout!r} is unknown: choose one of {', '.join(LAYOUTS)}.")
        if self.picture not in WRITTEN:
            raise DataError(f"Picture format {self.picture!r} is unknown: choose one of {', '.join(WRITTEN)}.")
        for name, least, most in (("side", 0, 8192), ("quality", 1, 100), ("per_shard", 1, 1_000_000)):
            if not least <= getattr(self, name) <= most:
                raise DataError(f"{name} = {getattr(self, name)} must lie between {least} and {most}.")


@dataclass(frozen=True, eq=False)
class Encoded:
    """One picture as it goes into a shard: ``data``, its file extension, its sides in pixels."""

    data: bytes
    extension: str
    width: int
    height: int


def encode(original: bytes, preparation: Preparation) -> Encoded:
    """Check a picture by decoding it whole, and reduce it.

    Raises:
        ValueError: it cannot be decoded.
    """
    image = open_rgb(original)
    if preparation.side == 0:
        return Encoded(original, EXTENSION_OF[picture_header(original)[0]], *image.size)
    shorter = min(image.size)
    if shorter > preparation.side:
        sides = [max(preparation.side, round(side * preparation.side / shorter)) for side in image.size]
        image = image.resize((sides[0], sides[1]), Image.Resampling.BICUBIC, reducing_gap=3.0)
    file = io.BytesIO()
    options = {} if preparation.picture == "png" else {"quality": preparation.quality}
    image.save(file, WRITTEN[preparation.picture], **options)
    return Encoded(file.getvalue(), preparation.picture, *image.size)
