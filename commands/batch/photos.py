"""The photos of a batch: found in a folder, and made into what every ComfyUI reads alike.

Cameras and programs write turned, animated, printed (CMYK) and 16-bit pictures, which nodes read each in its own way, or
not. So a photo is sent as an ordinary PNG: upright, its first frame, RGB or, where it has transparency (which E4T takes as
a mask), RGBA, of 8 bits.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from e4t_core.files.file_errors import FileError, FileKind
from e4t_core.files.file_name import FileNameError, checked_name
from e4t_core.files.whole_file import check_is_folder

from .faults import BatchError, Rejected

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"}
"""What is taken for a photo; those that cannot be read are named in the report."""
LONGEST = 4096
"""Pixels of the longer side that are sent; what is learned is 512 or 768 pixels of it."""


class PhotosError(BatchError, FileError):
    """A folder of photos that cannot be used."""


FOLDER = FileKind("Folder of photos", "name the folder of your photos", PhotosError, "correct the path")


@dataclass(frozen=True)
class Photo:
    """One photo of a folder.

    Attributes:
        path: the file.
        concept: what the learned concept is called: the file's name, as a file name for any system.
        digest: SHA-256 of the file, as hexadecimal digits.
    """

    path: Path
    concept: str
    digest: str

    @property
    def sent_as(self) -> str:
        """The name that the server has it under: by content, so that a photo changed under its name is another."""
        return f"{self.digest[:16]}.png"


def find_photos(folder: Path) -> tuple[list[Photo], list[str]]:
    """The photos in a folder, by name, each content once; and the names of files that were passed over.

    Raises:
        PhotosError: there is no such folder, no photo in it, or one cannot be opened.
    """
    check_is_folder(folder, FOLDER)
    photos: dict[str, Photo] = {}
    others = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.name.lower(), path.name)):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix.lower() not in SUFFIXES:
            others.append(path.name)
            continue
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise FOLDER.fault(path, f"cannot be read ({error.strerror})", "check its permissions") from error
        if digest in photos:
            others.append(f"{path.name} (the same as {photos[digest].path.name})")
        else:
            photos[digest] = Photo(path, file_name(path.stem), digest)
    if not photos:
        raise FOLDER.fault(folder, "holds no picture", "put .jpg, .png or .webp files into it")
    return list(photos.values()), others


def file_name(text: str, most: int = 60) -> str:
    """A text as a name for a file on any system: letters, digits, ``_`` and ``-``."""
    name = re.sub(r"[^\w]+", "-", text).strip("-_")[:most].rstrip("-_")
    try:
        return checked_name(name)
    except FileNameError:
        plain = re.sub(r"[^a-zA-Z0-9]+", "-", name).strip("-")
        return f"photo-{plain}" if plain else "photo"


def as_sent(path: Path) -> bytes:
    """The PNG that a server gets of a photo.

    Raises:
        Rejected: it is no picture, broken, of a kind that cannot be read, or too large.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of pictures that cameras make today; what would fill the memory it refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path, formats=FORMATS)
        with picture:
            # JPEG decoders can leave out what is made smaller anyway.
            picture.draft(None, (LONGEST, LONGEST))
            upright = ImageOps.exif_transpose(picture)
            upright.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
            plain = _eight_bits(upright)
    except UnidentifiedImageError as error:
        raise Rejected(f"{path.name} is no picture that can be read: save it as JPEG or PNG.") from error
    except Image.DecompressionBombError as error:
        raise Rejected(f"{path.name} has too many pixels: make it smaller.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise Rejected(f"{path.name} is broken ({error}): save it again.") from error
    held = io.BytesIO()
    # Without the photo's own data: place and time are nobody's business.
    plain.save(held, "PNG", compress_level=3)
    return held.getvalue()


def _eight_bits(picture: Image.Image) -> Image.Image:
    """As RGB, or RGBA where something may be transparent."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        # Pillow would cut 16 bits off at 255, and fractions to 0.
        wide = picture.convert("F")
        brightest = float(wide.getextrema()[1])  # type: ignore[arg-type]
        factor = 1 / 257 if brightest > 255 else 255 if brightest <= 1 and picture.mode == "F" else 1
        picture = wide.point(lambda value: value * factor + 0.5).convert("L")
    has_alpha = "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info
    plain = picture.convert("RGBA" if has_alpha else "RGB")
    plain.info.clear()
    return plain
