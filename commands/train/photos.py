"""Photos in a folder as a method learns them: a square of each, and masks of the same names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from commands.pretrain.data.pictures import EXTENSIONS, open_with_alpha, to_float, to_tensor
from e4t_core.crop import SMALLEST_SIDE, Square, mask_box, middle_square, square_around
from e4t_core.files.file_errors import FileKind

PHOTO, FOLDER = FileKind("Photo", "replace it, or take it out of the folder"), FileKind("Folder of photos")
MOST = 256
OPAQUE = 255


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo, whole.

    Attributes:
        file: it was read from.
        picture: RGB.
        mask: 8-bit gray of the same size, white = learn here; none: nobody said where.
    """

    file: Path
    picture: Image.Image
    mask: Image.Image | None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.picture.height, self.picture.width

    def pixels(self) -> Tensor:
        """``(3, H, W)`` in [0, 1]."""
        return to_float(to_tensor(self.picture))

    def usual_square(self, margin: float) -> Square:
        """The square around its mask; without one, the largest in its middle.

        Args:
            margin: room on each side of the mask's box, as a share of its longer side.
        """
        if self.mask is None:
            return middle_square(self.size)
        return square_around(self.size, mask_box(to_tensor(self.mask)[0]), margin)


def read_photos(folder: Path, masks: Path | None = None) -> list[Photo]:
    """The photos in a folder by their files' names. What is transparent is not learned.

    Args:
        folder: other files in it are left out.
        masks: a folder with pictures of the photos' names but for the ending, white = learn here. They are scaled to the photos.

    Raises:
        FileError: there is no photo, or one that cannot be read or is too small; a mask of no photo, or one that leaves nothing.
    """
    files = _pictures(folder)
    if not files:
        raise FOLDER.fault(folder, f"holds no photo ({', '.join(EXTENSIONS)})", "put the photos into it")
    if len(files) > MOST:
        raise FOLDER.fault(folder, f"holds {len(files)} photos", f"leave at most {MOST} of ONE person or thing")
    painted = {} if masks is None else {file.stem: file for file in _pictures(masks)}
    unknown = sorted(painted.keys() - {file.stem for file in files})
    if unknown:
        raise PHOTO.fault(painted[unknown[0]], "is a mask of no photo", "name it as its photo is named")
    return [_photo(file, painted.get(file.stem)) for file in files]


def cut(photos: Sequence[Photo], squares: Sequence[Square], size: int) -> tuple[Tensor, Tensor | None]:
    """Images ``(n, 3, S, S)`` in [0, 1], and masks ``(n, 1, S, S)`` in [0, 1], 1 = learn here; or none.

    A photo without a mask among others with one is learned as a whole.

    Args:
        photos: whole.
        squares: one for each, inside it.
        size: side S in pixels.
    """
    images, masks = [], []
    for photo, square in zip(photos, squares, strict=True):
        images.append(to_float(to_tensor(_resized(photo.picture, square, size))))
        mask = Image.new("L", photo.picture.size, OPAQUE) if photo.mask is None else photo.mask
        masks.append(to_float(to_tensor(_resized(mask, square, size))))
    masked = any(photo.mask is not None for photo in photos)
    return torch.stack(images), torch.stack(masks) if masked else None


def _resized(picture: Image.Image, square: Square, size: int) -> Image.Image:
    box = (square.left, square.top, square.left + square.side, square.top + square.side)
    # Pillow gives a picture back as it is where nothing changes.
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=box)


def _photo(file: Path, painted: Path | None) -> Photo:
    picture, mask = _read(file)
    if min(picture.size) < SMALLEST_SIDE:
        raise PHOTO.fault(file, f"is {picture.width}×{picture.height} pixels, too small to learn from")
    if mask is not None and mask.getextrema()[0] == OPAQUE:
        mask = None
    if painted is not None:
        white = to_tensor(_read(painted)[0].resize(picture.size, Image.Resampling.BICUBIC)).amax(dim=0)
        seen = white if mask is None else torch.minimum(white, to_tensor(mask)[0])
        mask = Image.fromarray(seen.numpy())
    if mask is not None and not mask.getextrema()[1]:
        raise PHOTO.fault(file, "has a mask, or transparency, that leaves nothing of it")
    return Photo(file, picture, mask)


def _pictures(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if file.suffix.lower() in EXTENSIONS and file.is_file())
    except OSError as error:
        raise FOLDER.fault(
            folder, f"cannot be read ({error.strerror})", "name a folder that holds the photos"
        ) from error


def _read(file: Path) -> tuple[Image.Image, Image.Image | None]:
    try:
        return open_with_alpha(file.read_bytes())
    except OSError as error:
        raise PHOTO.fault(file, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise PHOTO.fault(file, f"cannot be decoded ({str(error).rstrip('.')})") from error
