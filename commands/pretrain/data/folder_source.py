"""A folder of picture files, with any folders inside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from e4t_core.files.file_errors import shortened

from .pictures import EXTENSIONS, DataError
from .sources import EncodedSource


def picture_files(folder: Path) -> Iterator[str]:
    """Paths of the picture files below ``folder``, relative, with "/", in no order; links are followed, but not in circles.

    Hidden files and folders are left out.

    Raises:
        DataError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"Data folder {error.filename} cannot be read ({error.strerror}): make it readable, or move it."
        )

    above: dict[str, tuple[str, ...]] = {}  # folder -> the real paths that it lies in
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        way = above.pop(place, ())
        if real in way:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        above |= {os.path.join(place, name): (*way, real) for name in folders}
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(place, name).relative_to(folder).as_posix()


def is_folder(path: Path) -> bool:
    """Whether a path leads to a folder.

    Raises:
        DataError: it may not be looked at, or no path can be like that.
    """
    try:
        return path.is_dir()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise DataError(f"Folder {shortened(str(path))} cannot be looked at ({reason}): correct the path.") from error


def read_file(path: Path) -> bytes:
    """The bytes of an ordinary file: reading a pipe would never end.

    Raises:
        OSError: it cannot be read.
        ValueError: it is a pipe, device or folder, or is not there.
    """
    if not path.is_file():
        raise ValueError("it is no ordinary file")
    return path.read_bytes()


class FolderSource(EncodedSource):
    """All pictures below a folder, sorted by path; one part, so that an epoch is mixed completely.

    Paths are held as one block of bytes: a Python list of a million strings would be copied, page by page, into every
    worker that touches it.

    Raises:
        DataError: there is no such folder, or no picture in it.
    """

    def __init__(self, folder: Path) -> None:
        if not is_folder(folder):
            raise DataError(f"Data folder {folder} does not exist: correct the path, or prepare the data first.")
        names = sorted(name.encode("utf-8", "surrogateescape") for name in picture_files(folder))
        if not names:
            raise DataError(f"Data folder {folder} holds no picture ({', '.join(EXTENSIONS)}): choose another one.")
        self.folder, self.parts = folder, (len(names),)
        self._names = b"".join(names)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)

    def label(self, row: int) -> str:
        start = int(self._ends[row - 1]) if row else 0
        return self._names[start : int(self._ends[row])].decode("utf-8", "surrogateescape")

    def encoded(self, row: int) -> bytes:
        return read_file(self.folder / self.label(row))
