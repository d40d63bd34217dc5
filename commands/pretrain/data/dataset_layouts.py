"""Data sets as people download them: what their files are called and where the pictures lie.

A layout lists entries in a fixed order; an entry's picture can be read alone, from any thread.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import lmdb

from .folder_source import is_folder, picture_files, read_file
from .pictures import DataError


class Layout(ABC):
    """An unpacked data set.

    Attributes:
        names: of the entries, unique, sorted; "/" parts folders.
    """

    names: list[str]

    @abstractmethod
    def read(self, number: int) -> bytes:
        """The encoded picture of ``names[number]``.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged.
        """


class Files(Layout):
    """Picture files in a folder, in the natural order of their names ("2.jpg" before "10.jpg").

    Raises:
        DataError: folder missing, or no picture in it.
    """

    def __init__(self, folder: Path) -> None:
        if not is_folder(folder):
            raise DataError(f"Folder {folder} does not exist: give the folder that the data set was unpacked to.")
        self.folder = folder
        self.names = sorted(picture_files(folder), key=_natural)
        if not self.names:
            raise DataError(f"Folder {folder} holds no picture: give the folder that the data set was unpacked to.")

    def read(self, number: int) -> bytes:
        return read_file(self.folder / self.names[number])


class Ffhq(Files):
    """FFHQ: ``00000/00000.png`` … ``69000/69999.png``, in whatever folder ("images1024x1024") lies above.

    The same photos as thumbnails and uncropped ("thumbnails128x128", "in-the-wild-images") are left out where they lie beside.

    Raises:
        DataError: no file is named like that.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.names = [
            name
            for name in self.names
            if re.search(r"(^|/)\d{5}\.(png|jpe?g|webp)$", name.lower())
            and not re.search(r"(^|/)(thumbnails|in-the-wild)[^/]*/", name)
        ]
        if not self.names:
            raise DataError(f"Folder {folder} has no file like 00000/00000.png: is it FFHQ?")


class CelebAHq(Files):
    """CelebA-HQ, in whatever folder ("CelebA-HQ-img"); CelebAMask-HQ's drawings of face parts are left out.

    Raises:
        DataError: no picture is left.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.names = [name for name in self.names if not re.search(r"(^|/)[^/]*mask-anno[^/]*/", name.lower())]
        if not self.names:
            raise DataError(f"Folder {folder} holds masks only: give the folder that CelebA-HQ-img lies in.")


class WikiArt(Files):
    """WikiArt: one folder per style ("Cubism/pablo-picasso_….jpg").

    Raises:
        DataError: the pictures do not lie in folders of styles.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.names = [name for name in self.names if "/" in name]
        if not self.names:
            raise DataError(f"Folder {folder} has no folders of styles with pictures in them: is it WikiArt?")


class LsunLmdb(Layout):
    """LSUN: a folder ``cat`` with ``data.mdb``; values are WebP (or JPEG) files, keys are hashes.

    Raises:
        DataError: there is no such database, or it is empty.
    """

    def __init__(self, folder: Path) -> None:
        if not is_folder(folder):
            raise DataError(f"Folder {folder} does not exist: give the folder that the data set was unpacked to.")
        found = [folder, *(child for child in sorted(folder.glob("*")) if child.is_dir())]
        place = next((path for path in found if (path / "data.mdb").is_file()), None)
        if place is None:
            raise DataError(f"Folder {folder} has no data.mdb: unzip LSUN's cat.zip and give the folder it makes.")
        try:
            self._environment = lmdb.open(str(place), readonly=True, lock=False, readahead=False, max_readers=256)
            whole = (self._environment.info()["last_pgno"] + 1) * self._environment.stat()["psize"]
            if (place / "data.mdb").stat().st_size < whole:  # reading past a mapped file's end would kill the process
                raise DataError(f"Database {place / 'data.mdb'} is cut, it should have {whole} bytes: unzip it again.")
            with self._environment.begin() as transaction:
                keys = transaction.cursor().iternext(keys=True, values=False)
                self.names = [bytes(key).decode("ascii", "backslashreplace") for key in keys]
        except lmdb.Error as error:
            raise DataError(f"Database {place / 'data.mdb'} could not be read ({error}): unzip it again.") from error
        if not self.names:
            raise DataError(f"Database {place / 'data.mdb'} is empty: unzip it again.")

    def read(self, number: int) -> bytes:
        try:
            with self._environment.begin() as transaction:
                value = transaction.get(self.names[number].encode("ascii"))
        except lmdb.Error as error:
            raise ValueError(f"the database cannot be read there ({error})") from error
        if value is None:
            raise ValueError("the database has no such key any more")
        return bytes(value)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts numbers in a name as numbers."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.findall(r"\d+|\D+", name)]


LAYOUTS: dict[str, Callable[[Path], Layout]] = {
    "ffhq": Ffhq,
    "celeba-hq": CelebAHq,
    "lsun-cat": LsunLmdb,
    "wikiart": WikiArt,
    "folder": Files,
}
LICENCES: dict[str, str] = {
    "ffhq": "CC BY-NC-SA 4.0 for the data set; each photo under its photographer's license (see FFHQ's metadata)",
    "celeba-hq": "non-commercial research use only (CelebA's terms)",
    "lsun-cat": "no license is stated by LSUN; the pictures were collected from the web",
    "wikiart": "non-commercial research use; many paintings are in the public domain, some are under copyright",
    "folder": "unknown",
}
