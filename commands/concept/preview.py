"""The preview picture of a concept file, which stands in its header as a data URI."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from e4t_core.files.concept_file import CONCEPT
from e4t_core.files.file_errors import FileKind
from e4t_core.files.file_name import free_path
from e4t_core.files.whole_file import replacing

URI = re.compile(r"data:image/(?P<kind>jpeg|png|webp);base64,(?P<data>.*)", re.DOTALL)
FILES = {"jpeg": (".jpg", ".jpeg"), "png": (".png",), "webp": (".webp",)}
"""Kind of picture -> how its files end."""
PICTURE = FileKind("Picture")


def write_preview(source: Path, thumbnail: str, target: Path, overwrite: bool = False) -> Path:
    """Write a preview, as the very bytes that the concept file holds; a file that is there stays, unless ``overwrite``.

    Args:
        source: the concept file, for messages.
        thumbnail: its data URI.
        target: of the picture.
        overwrite: replace a file of that name.

    Returns:
        Where it was written, with a number if there was such a file.

    Raises:
        FileError: there is no preview, it is no picture, or it cannot be written so.
    """
    if not thumbnail:
        raise CONCEPT.fault(source, "has no preview", "leave --preview out, or save it with one")
    found = URI.fullmatch(thumbnail)
    if found is None:
        raise CONCEPT.fault(source, "has a preview that is no JPEG, PNG or WebP picture", "leave --preview out")
    endings = FILES[found["kind"]]
    if target.suffix.lower() not in endings:
        raise PICTURE.fault(target, f"would be a {found['kind'].upper()}", f"let its name end in {endings[0]}")
    try:
        data = base64.b64decode(found["data"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise CONCEPT.fault(source, "has a damaged preview", "leave --preview out") from error
    path = target if overwrite else free_path(target)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        advice = "check that its folder exists and may be written to"
        raise PICTURE.fault(path, f"could not be written ({error.strerror})", advice) from error
    return path
