"""What is said of a file that cannot be used: one error type, one short sentence, safe to print whatever the file holds."""

from __future__ import annotations

import os
import reprlib
from dataclasses import dataclass

MESSAGE_LIMIT = 300  # characters
# Room for what is wrong, however long the path is.
FAULT_ROOM = 90


class FileError(ValueError):
    """A file that cannot be used or written; the message is one sentence that names it, the fault and what to do."""


@dataclass(frozen=True)
class FileKind:
    """A kind of file, for messages.

    Attributes:
        name: how it is called at the beginning of a sentence ("Domain file").
        advice: what to do about a damaged one.
        error: what is raised.
        missing: what to do about a missing one.
    """

    name: str
    advice: str = "download or make it again"
    error: type[FileError] = FileError
    missing: str = "put it there, or correct the path"

    def fault(self, path: str | os.PathLike[str], text: str, advice: str = "") -> FileError:
        """The error to raise: "<name> <path> <text>: <advice>.", at most 300 characters, the path's end kept."""
        advice = advice or self.advice
        room = MESSAGE_LIMIT - len(self.name) - len(advice) - len("  : .")
        place = shortened(os.fspath(path), max(room - FAULT_ROOM, 40), keep_end=True)
        return self.error(shortened(f"{self.name} {place} {shortened(text, room - len(place))}: {advice}."))


def shortened(text: str, limit: int = MESSAGE_LIMIT, keep_end: bool = False) -> str:
    """A text for a message: at most ``limit`` characters, control characters and lone surrogates escaped.

    Args:
        text: of any length.
        limit: characters.
        keep_end: cut the beginning off, as is right for a path; else the end.
    """
    cut = text[-limit:] if keep_end else text[:limit]
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
    if len(text) <= limit and len(safe) <= limit:
        return safe
    return f"...{safe[3 - limit :]}" if keep_end else f"{safe[: limit - 3]}..."


def shown(value: object, limit: int = 80) -> str:
    """A value from a file for a message, whatever it is: long lists and texts are cut before they are written out."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = brief.maxlong = limit
    try:
        return shortened(brief.repr(value), limit)
    except ValueError:  # Python does not write whole numbers of more than 4300 digits out
        return "a number of thousands of digits"


def shown_name(name: str) -> str:
    """A tensor's name for a message, its end kept."""
    return shortened(name, 90, keep_end=True)
