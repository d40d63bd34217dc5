"""Photos in a folder as a method learns them: squares from their middle, and masks of the same names."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from commands.pretrain.data.pictures import EXTENSIONS, Picture, decode, to_float
from e4t_core.files.file_errors import FileKind

PHOTO, FOLDER = FileKind("Photo", "replace it, or take it out of the folder"), FileKind("Folder of photos")
MOST = 256
OPAQUE = 255


def read_photos(folder: Path, size: int, masks: Path | None = None) -> tuple[Tensor, Tensor | None]:
    """Images ``(n, 3, S, S)`` in [0, 1], and masks ``(n, 1, S, S)`` in [0, 1], 1 = learn here; or none.

    What is transparent is not learned. A photo without a mask among others with one is learned as a whole.

    Args:
        folder: of the photos; other files in it are left out.
        size: side S in pixels.
        masks: a folder with pictures of the photos' names but for the ending: white = learn here.

    Raises:
        FileError: there is no photo, or one that cannot be read; a mask of no photo, or one that leaves nothing.
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
    images, learned = [], []
    for file in files:
        photo = _read(file, size)
        assert photo.mask is not None
        mask = photo.mask
        if file.stem in painted:
            white = _read(painted[file.stem], size).image.amax(dim=0, keepdim=True)
            mask = torch.minimum(mask, white)
        if not mask.any():
            raise PHOTO.fault(file, "has a mask, or transparency, that leaves nothing of its middle square")
        images.append(to_float(photo.image))
        learned.append(mask)
    everywhere = all(bool((mask == OPAQUE).all()) for mask in learned)
    return torch.stack(images), None if everywhere else torch.stack([to_float(mask) for mask in learned])


def _pictures(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if file.suffix.lower() in EXTENSIONS and file.is_file())
    except OSError as error:
        raise FOLDER.fault(
            folder, f"cannot be read ({error.strerror})", "name a folder that holds the photos"
        ) from error


def _read(file: Path, size: int) -> Picture:
    try:
        return decode(file.read_bytes(), size, alpha_mask=True)
    except OSError as error:
        raise PHOTO.fault(file, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise PHOTO.fault(file, f"cannot be decoded ({str(error).rstrip('.')})") from error
