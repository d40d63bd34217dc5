"""Tar shards in webdataset's layout: members that share a name up to its first dot are one sample.

The package webdataset is used for what it defines: where a sample's key ends (here) and the writing (``prepare``), so
its own reader reads our shards and we read anybody's. It is not used for reading: it goes through a shard from its
start, shuffles in a buffer and deals shards out to workers and nodes, so its order depends on how many there are and
cannot be entered in the middle; its indexed variant is dealt out by rank as well. Here a sample is read by its offset
from the few shards that are being mixed, so nothing is unpacked and any index can be the next one. Shards lie on a file
system, local or network; addresses of the web are not read.
"""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from webdataset.tariterators import base_plus_ext

from commands.progress import Progress

from .folder_source import is_folder
from .pictures import EXTENSIONS, DataError
from .recently_used import RecentlyUsed
from .sources import EncodedSource

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
BLOCK = 512


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where a shard's pictures lie.

    Attributes:
        keys: of the samples, in file order.
        places: ``(n, 2)`` int64, offset and size of each picture in bytes.
        cut: the file ends before its archive does.
    """

    keys: tuple[str, ...]
    places: NDArray[np.int64]
    cut: bool


def scan_shard(path: Path) -> ShardIndex:
    """Walk a shard's headers; pictures are not read. Samples without a picture are left out.

    Raises:
        DataError: it is no tar file, or could not be opened.
    """
    length, end, cut = path.stat().st_size, 0, False
    keys: list[str] = []
    places: list[tuple[int, int]] = []
    try:
        with tarfile.open(path, "r:") as archive:
            while True:
                try:
                    member = archive.next()
                except (tarfile.TarError, EOFError):
                    cut = True
                    break
                if member is None:
                    break
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                key, extension = base_plus_ext(member.name)
                if not member.isfile() or key is None or f".{extension.lower()}" not in EXTENSIONS:
                    continue
                if member.offset_data + member.size > length:
                    cut = True
                    break
                if not keys or keys[-1] != key:  # the first picture of a sample counts
                    keys.append(key)
                    places.append((member.offset_data, member.size))
        with path.open("rb") as file:
            file.seek(end)
            # tarfile takes a damaged header for the end; a true end is a block of zeros.
            cut = cut or file.read(BLOCK) != bytes(BLOCK)
    except (tarfile.TarError, OSError) as error:
        if length >= BLOCK and not keys:
            raise DataError(f"Shard {path} could not be read as a tar file ({error}): make it again.") from error
        cut = True
    return ShardIndex(tuple(keys), np.array(places, dtype=np.int64).reshape(-1, 2), cut)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What ``prepare`` wrote beside the shards; None if there is nothing.

    Raises:
        DataError: it is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for shard in manifest["shards"]:
            str(shard["name"]), int(shard["samples"]), int(shard["bytes"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"Manifest {path} is damaged ({type(error).__name__}: {error}): run prepare again, or delete it."
        ) from error
    return manifest


class ShardSource(EncodedSource):
    """The tar shards of a folder, by name.

    How many samples each holds is taken from ``prepare``'s manifest; without one, every shard's headers are walked once
    at the start. What a shard holds less than it should (it was cut) counts as corrupt samples.

    Args:
        folder: with ``*.tar``.
        window: shards that are mixed at once, and held open.

    Raises:
        DataError: folder or a shard is missing, or there is no sample.
    """

    def __init__(self, folder: Path, window: int) -> None:
        if not is_folder(folder):
            raise DataError(f"Shard folder {folder} does not exist: correct the path, or run prepare first.")
        self.folder, self.window = folder, window
        manifest = read_manifest(folder)
        counts = self._counted() if manifest is None else self._listed(manifest)
        if not sum(counts.values()):
            raise DataError(f"Shard folder {folder} holds no sample in any *.tar: choose another one, or run prepare.")
        self._names = tuple(counts)
        self.parts = tuple(counts.values())
        self._starts = np.concatenate([[0], np.cumsum(self.parts)])
        self._files: RecentlyUsed[int, BufferedReader] = RecentlyUsed(window + 2, BufferedReader.close)
        self._indices: RecentlyUsed[int, ShardIndex] = RecentlyUsed(window + 2)

    def _listed(self, manifest: Mapping[str, Any]) -> dict[str, int]:
        for shard in manifest["shards"]:
            path = self.folder / shard["name"]
            if not path.is_file():
                raise DataError(
                    f"Shard {path} is in the manifest but not in its folder: copy it there, or run prepare."
                )
            if path.stat().st_size != shard["bytes"]:
                log.warning(
                    "Shard %s has %d bytes, its manifest says %d: what is missing of it counts as corrupt.",
                    path,
                    path.stat().st_size,
                    shard["bytes"],
                )
        return {shard["name"]: int(shard["samples"]) for shard in manifest["shards"]}

    def _counted(self) -> dict[str, int]:
        paths = sorted(path for path in self.folder.glob("*.tar") if path.is_file())
        counts = {}
        for path in Progress(paths, desc=f"counting samples in {self.folder.name}", leave=False):
            index = scan_shard(path)
            if index.cut:
                log.warning("Shard %s is cut after %d samples.", path, len(index.keys))
            counts[path.name] = len(index.keys) + index.cut
        return counts

    def _find(self, row: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, row - int(self._starts[shard])

    def _index(self, shard: int) -> ShardIndex:
        return self._indices.get(shard, lambda: scan_shard(self.folder / self._names[shard]))

    def label(self, row: int) -> str:
        shard, number = self._find(row)
        try:
            keys = self._index(shard).keys
        except (DataError, OSError):  # the shard is gone or garbage: its rows have no names
            keys = ()
        return f"{self._names[shard]}: {keys[number] if number < len(keys) else f'sample {number}'}"

    def encoded(self, row: int) -> bytes:
        shard, number = self._find(row)
        index = self._index(shard)
        if number >= len(index.keys):
            raise ValueError(f"the shard ends after {len(index.keys)} of {self.parts[shard]} samples")
        file = self._files.get(shard, lambda: (self.folder / self._names[shard]).open("rb"))
        offset, size = (int(value) for value in index.places[number])
        file.seek(offset)
        return file.read(size)
