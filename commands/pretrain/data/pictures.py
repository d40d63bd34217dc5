"""From an encoded picture to the square that is learned from."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""What Pillow may take a picture for, whatever its name: others are handed to programs like Ghostscript."""


class DataError(ValueError):
    """Training data that cannot be used as a whole; the message is one sentence that names what and where."""


class CorruptSample(Exception):
    """One sample that cannot be read; it is skipped and counted.

    Attributes:
        label: which one ("faces-000003.tar: 00042").
        reason: what was wrong with it.
    """

    def __init__(self, label: str, reason: str) -> None:
        super().__init__(f"{label}: {reason}")
        self.label, self.reason = label, reason

    def __reduce__(self) -> tuple[type[CorruptSample], tuple[str, str]]:
        return CorruptSample, (self.label, self.reason)


@dataclass(frozen=True, eq=False)
class Picture:
    """One sample.

    Attributes:
        image: ``(3, S, S)`` uint8, red, green, blue.
        mask: ``(1, S, S)`` uint8, 255 where the loss counts; None if the source has no masks.
    """

    image: Tensor
    mask: Tensor | None = None


def open_rgb(encoded: bytes) -> Image.Image:
    """The whole picture, upright (EXIF), as 8-bit RGB; alpha is dropped, 16-bit gray is scaled.

    Raises:
        ValueError: it cannot be decoded completely, or has more than Pillow's limit of 179 million pixels.
    """
    return open_with_alpha(encoded)[0]


def open_with_alpha(encoded: bytes) -> tuple[Image.Image, Image.Image | None]:
    """As :func:`open_rgb`, and the alpha channel as 8-bit gray, None if there is none.

    Raises:
        ValueError: see :func:`open_rgb`.
    """
    try:
        with warnings.catch_warnings():
            # Scanned paintings are large; the error at twice that size stays.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(encoded), formats=FORMATS)
            image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        return image if image.mode == "RGB" else image.convert("RGB"), alpha
    except UnidentifiedImageError as error:  # its own message names an address in memory
        raise ValueError(f"it is no {', '.join(FORMATS)} picture") from error
    except (
        Exception
    ) as error:  # Pillow's decoders raise whatever their parsers meet: OSError, SyntaxError, struct.error …
        raise ValueError(f"{type(error).__name__}: {error}") from error


def picture_header(encoded: bytes) -> tuple[str, int]:
    """Format, as Pillow calls it, and shorter side in pixels, without decoding.

    Raises:
        OSError: it is no picture.
    """
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        return image.format or "", min(image.size)


def square(image: Image.Image, size: int) -> Image.Image:
    """The largest centered square, resized to ``size`` (bicubic, antialiased); the picture itself if it is that already."""
    width, height = image.size
    if (width, height) == (size, size):
        return image
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> ``(3, H, W)`` uint8; gray picture -> ``(1, H, W)``."""
    return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1).contiguous()


def decode(encoded: bytes, size: int, alpha_mask: bool = False) -> Picture:
    """An encoded picture as a square of ``size`` pixels.

    Args:
        alpha_mask: its alpha channel is its mask; without one all of it counts.

    Raises:
        ValueError: see :func:`open_rgb`.
    """
    image, alpha = open_with_alpha(encoded)
    mask = (alpha or Image.new("L", image.size, 255)) if alpha_mask else None
    return Picture(to_tensor(square(image, size)), None if mask is None else to_tensor(square(mask, size)))


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0-255 -> float32 [0, 1], on whatever device they are."""
    return pixels.float() / 255
