"""How an entry of a config's ``[[data.sources]]`` becomes a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .folder_source import FolderSource
from .parquet_source import ParquetSource
from .pictures import DataError
from .shard_source import ShardSource
from .sources import EncodedSource, Source, from_factory


def open_configured_source(
    kind: str,
    path: Path,
    *,
    window: int,
    column: str,
    factory: str,
    options: dict[str, Any],
    alpha_mask: bool = False,
) -> Source:
    """A source by the words of a config's ``[[data.sources]]``.

    Raises:
        DataError: it is missing, empty or of another kind.
    """
    if kind != "python":
        source = _encoded_source(kind, path, window, column)
        source.alpha_mask = alpha_mask
        return source
    made: Source = from_factory(factory)(**options)
    if not sum(made.parts):
        raise DataError(f"Source {factory} has no row with the options {options}: correct them.")
    return made


def _encoded_source(kind: str, path: Path, window: int, column: str) -> EncodedSource:
    if kind == "folder":
        return FolderSource(path)
    if kind == "shards":
        return ShardSource(path, window)
    return ParquetSource(path, window, column)
