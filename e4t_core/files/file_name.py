"""Names that people give to files: one rule for every file that is written under such a name."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from .file_errors import shown

# File systems hold 255 bytes of a name; the rest is for a number, a token and the ending.
MOST_BYTES = 180
# Numbered names are tried up to this one.
MOST_NUMBERS = 99_999
# Windows takes these for devices, whatever ending follows.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])(\..*)?", re.IGNORECASE)
_PLAIN = re.compile(r"[^\W_](?:[\w\-.]*[\w\-])?")


class FileNameError(ValueError):
    """A name that no file may have; the message is one sentence that says why."""


def checked_name(name: str) -> str:
    """A name for a file, without folder and ending, that prompts and every file system take; accents composed.

    Letters and digits of any script, and ``_ - .`` inside; it begins with a letter or digit. So nothing can lead out of a
    folder, and the stock prompt reads ``embedding:e4t/<name>`` as one word.

    Raises:
        FileNameError: it is none.
    """
    composed = unicodedata.normalize("NFC", name) if isinstance(name, str) else ""
    advice = "use letters, digits, _ - and dots inside, such as anna-2"
    if not _PLAIN.fullmatch(composed) or any(unicodedata.category(c) in ("Cf", "Mn", "Co", "Cn") for c in composed):
        raise FileNameError(f"The name {shown(name, 60)} cannot be a file's: {advice}.")
    if len(composed.encode("utf-8")) > MOST_BYTES:
        raise FileNameError(f"The name {shown(name, 60)} is too long for a file: at most {MOST_BYTES} bytes.")
    if _DEVICES.fullmatch(composed):
        raise FileNameError(f"The name {shown(name, 60)} is a device on Windows: choose another.")
    return composed


def check_inside(path: Path) -> None:
    """Check that writing to a path does not leave its folder by a link.

    Raises:
        FileNameError: it would.
    """
    if path.is_symlink() and Path(os.path.realpath(path)).parent != Path(os.path.realpath(path.parent)):
        raise FileNameError(
            f"{path} is a link to {os.path.realpath(path)}, outside its folder, which is not written to: choose another name."
        )


def free_path(path: Path) -> Path:
    """The path itself, or with a number behind the name if there is such a file already ("anna_00002")."""
    number, free = 1, path
    while (free.exists() or free.is_symlink()) and number < MOST_NUMBERS:
        number += 1
        free = path.with_name(f"{path.stem}_{number:05}{path.suffix}")
    return free
