"""Parquet files with encoded pictures in a column, as data sets are often published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .folder_source import is_folder
from .pictures import DataError
from .recently_used import RecentlyUsed
from .sources import EncodedSource


class ParquetSource(EncodedSource):
    """A parquet file, or a folder of them by name; a part is a row group.

    A row group can only be read as a whole: each worker holds the ``window`` that are being mixed in memory, and each
    worker reads them all. For long runs with many workers convert to shards by ``prepare``.

    Args:
        path: of the file or folder.
        window: row groups that are mixed at once.
        column: of the pictures: bytes, or a struct with a field "bytes".

    Raises:
        DataError: nothing is there, a file cannot be read, or it has no such column.
    """

    def __init__(self, path: Path, window: int, column: str) -> None:
        files = [file for file in (sorted(path.glob("*.parquet")) if is_folder(path) else [path]) if file.is_file()]
        if not files:
            raise DataError(f"Parquet data {path} does not exist or holds no *.parquet: correct the path.")
        self.window, self.column = window, column
        groups: list[tuple[Path, int]] = []
        parts: list[int] = []
        for file in files:
            try:
                metadata, schema = pq.read_metadata(file), pq.read_schema(file)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"Parquet file {file} could not be read ({error}): copy it again.") from error
            if column in schema.names and not _holds_bytes(schema.field(column).type):
                raise DataError(
                    f"Column {column!r} of parquet file {file} holds {schema.field(column).type}, not the bytes of pictures"
                    f" (columns: {', '.join(schema.names)}): set 'column' to the right one."
                )
            if column not in schema.names:
                raise DataError(
                    f"Parquet file {file} has no column {column!r} of picture bytes (there are"
                    f" {', '.join(schema.names)}): set 'column' to the right one."
                )
            groups += [(file, group) for group in range(metadata.num_row_groups)]
            parts += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if not sum(parts):
            raise DataError(f"Parquet data {path} has no row: choose another one.")
        self._groups, self.parts = tuple(groups), tuple(parts)
        self._starts = np.concatenate([[0], np.cumsum(parts)])
        self._read: RecentlyUsed[int, Any] = RecentlyUsed(window)

    def _find(self, row: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        return group, row - int(self._starts[group])

    def label(self, row: int) -> str:
        group, number = self._find(row)
        return f"{self._groups[group][0].name}: row group {self._groups[group][1]}, row {number}"

    def encoded(self, row: int) -> bytes:
        group, number = self._find(row)
        value = self._read.get(group, lambda: self._column(group))[number].as_py()
        if value is None:
            raise ValueError("the row is empty")
        return value

    def _column(self, group: int) -> Any:
        file, number = self._groups[group]
        try:
            # Arrow's threads do not survive the fork that makes a worker.
            with pq.ParquetFile(file) as opened:
                column = opened.read_row_group(number, columns=[self.column], use_threads=False).column(0)
        except pa.ArrowException as error:
            raise ValueError(f"row group {number} cannot be read ({error})") from error
        column = column.combine_chunks()
        return column.field("bytes") if pa.types.is_struct(column.type) else column


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return "bytes" in names and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
