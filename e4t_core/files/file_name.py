"""Names that people give to files: one rule for every file that is written under such a name."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from .file_errors import shortened, shown

# File systems hold 255 bytes of a name; the rest is for a number, a token and the ending.
MOST_BYTES = 180
# Numbered names are tried up to this one.
MOST_NUMBERS = 99_999
# Windows takes these for devices, whatever ending follows.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])(\..*)?", re.IGNORECASE)
_PLAIN = re.compile(r"[^\W_](?:[\w\-.]*[\w\-])?")
# Vowel signs and accents that no letter is composed with: many scripts need some, none needs heaps of them.
_MARKS = ("Mn", "Mc")
_MOST_MARKS = 4
# Letters and marks that show nothing, so that two names would look alike.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


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
    if not _is_plain(composed):
        raise FileNameError(f"The name {shown(name, 60)} cannot be a file's: {advice}.")
    if len(composed.encode("utf-8")) > MOST_BYTES:
        raise FileNameError(f"The name {shown(name, 60)} is too long for a file: at most {MOST_BYTES} bytes.")
    if _DEVICES.fullmatch(composed):
        raise FileNameError(f"The name {shown(name, 60)} is a device on Windows: choose another.")
    return composed


def _is_plain(name: str) -> bool:
    letters, marks = "", 0
    for character in name:
        if unicodedata.category(character) not in _MARKS:
            letters, marks = letters + character, 0
        elif letters[-1:].isalpha() and marks < _MOST_MARKS:
            marks += 1
        else:
            return False
    return bool(_PLAIN.fullmatch(letters)) and not _INVISIBLE.search(name)


def fault_of(name: str) -> str:
    """What is wrong with a name, in one sentence; empty where nothing is."""
    try:
        checked_name(name)
    except FileNameError as error:
        return str(error)
    return ""


def check_inside(path: Path) -> Path:
    """The file that writing to a path writes: itself, or what it is a link to, which must be in the same folder.

    Raises:
        FileNameError: it is a link to another folder, or to another type of file.
    """
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.parent != Path(os.path.realpath(path.parent)) or target.suffix != path.suffix:
        place = shortened(str(path), 100, keep_end=True)
        raise FileNameError(
            f"{place} is a link to {shortened(str(target), 100, keep_end=True)}, which is not written to: choose another"
            " name."
        )
    return path.with_name(target.name)


def free_path(path: Path) -> Path:
    """The path itself, or with a number behind the name if there is such a file already ("anna_00002").

    Raises:
        FileNameError: there are as many as are tried.
    """
    number, free = 1, path
    while free.exists() or free.is_symlink():
        if number == MOST_NUMBERS:
            raise FileNameError(
                f"{path.name} and {MOST_NUMBERS - 1} numbered names are there already: choose another name."
            )
        number += 1
        free = path.with_name(f"{path.stem}_{number:05}{path.suffix}")
    return free
