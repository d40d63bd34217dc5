"""What a save of a concept leaves behind, and how it is tidied up, even after the program was killed.

The names of the files that a save writes or makes useless are noted beside the concept files until it is done. So the next save
can remove them, and needs to guess at nothing: a second file that merely looks unused may belong to a concept file that a
person moved or renamed.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from .checked_file import read_header
from .description import JSON_LIMIT, read_json
from .file_errors import FileError, FileKind
from .whole_file import temporary_files

NOTE = ".e4t.unfinished"
_NAME = re.compile(r"[^/\\:\0]{1,240}\.safetensors")
_MOST = 100
_ANY = FileKind("File")


def note(folder: Path, names: Collection[str]) -> None:
    """Note the files of a save that begins; of none: forget the last one's.

    Args:
        folder: of the concept files.
        names: of files there, or in the folder of second files.

    Raises:
        OSError: it could not be written.
    """
    path = folder / NOTE
    if names:
        path.write_text(json.dumps({"names": list(names)}), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def noted(folder: Path) -> list[str]:
    """The files of a save that did not end."""
    try:
        with open(folder / NOTE, encoding="utf-8") as file:
            names = read_json(file.read(JSON_LIMIT)).get("names")
    except (OSError, ValueError):
        return []
    found = names if isinstance(names, list) else []
    return [name for name in found[:_MOST] if isinstance(name, str) and _NAME.fullmatch(name)]


def tidy(words: Path, weights: Path, names: Sequence[str], format: str) -> list[str]:
    """Remove second files that no concept file names, and temporary files; nobody else may write meanwhile.

    Args:
        words: folder of the concept files.
        weights: folder of second files, which may lie beside the concept files as well.
        names: of the files that a save wrote or made useless.
        format: of second files, as their metadata say; files of any other are left alone.

    Returns:
        The names that stay because they could not be removed, as on Windows while somebody reads them.
    """
    stay = []
    needed: set[str] | None = None
    for name in names:
        there = [place / name for place in dict.fromkeys((words, weights))]
        removable = [beside for place in there for beside in temporary_files(place)]
        second = [place for place in there if _metadata(place).get("e4t.format") == format]
        if second:
            needed = _needed(words) if needed is None else needed
            removable += [] if name in needed else second
        for file in removable:
            with contextlib.suppress(OSError):
                file.unlink()
        if any(file.exists() for file in removable):
            stay.append(name)
    return stay


def _needed(words: Path) -> set[str]:
    """The second files that the concept files of a folder name, those of other versions too."""
    found = set()
    for path in words.glob("*.safetensors"):
        with contextlib.suppress(ValueError):
            found.add(str(read_json(_metadata(path).get("e4t.info", "")).get("weights_file")))
    return found


def _metadata(path: Path) -> dict[str, str]:
    try:
        return dict(read_header(path, _ANY).metadata)
    except FileError:
        return {}
