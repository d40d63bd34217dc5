"""Writes a data set's shards, one after the other, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from commands.progress import Progress
from e4t_core.files.whole_file import replacing

from .dataset_layouts import LAYOUTS, LICENCES, Layout
from .pictures import DataError
from .preparation import Encoded, Preparation, encode
from .sample_order import permutation
from .shard_source import MANIFEST

log = logging.getLogger(__name__)
FORMAT, VERSION = "e4t-shards", 1
NAMED_CORRUPT = 1000  # so many are named in the manifest; all are counted


def prepare(
    source: Path,
    target: Path,
    preparation: Preparation,
    licence: str = "",
    workers: int = 0,
    retry_corrupt: bool = False,
) -> dict[str, Any]:
    """Write the shards that are still missing and the manifest; returns the manifest.

    Args:
        source: of the unpacked data set.
        target: folder of the shards; made if need be.
        preparation: how.
        licence: of the data, for the manifest; the layout's usual one by default.
        workers: threads that decode and encode (both leave Python's lock); 0: as many as there are processors.
        retry_corrupt: make shards again that lack pictures which could not be decoded, once those have been mended.

    Raises:
        DataError: there is nothing to prepare, ``target`` holds shards of another preparation, or no picture is whole.
        OSError: writing failed; what is finished stays.
    """
    if workers < 0:
        raise DataError(f"workers = {workers} must be 0 (one per processor) or more.")
    layout = LAYOUTS[preparation.layout](source)
    target.mkdir(parents=True, exist_ok=True)
    _check_same(target, preparation, layout.names)
    for left in target.glob(".*.tmp"):  # by a process that was killed while it wrote
        left.unlink(missing_ok=True)
    order = permutation(len(layout.names), "prepare", preparation.seed)
    starts = range(0, len(order), preparation.per_shard)
    records: list[dict[str, Any]] = []
    with (
        Progress(total=len(order), desc=f"preparing {preparation.layout}", unit="picture") as bar,
        ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool,
    ):
        for shard, start in enumerate(starts):
            numbers = [int(number) for number in order[start : start + preparation.per_shard]]
            path = target / f"{preparation.layout}-{shard:06}.tar"
            record = _finished(path)
            if record is None or (retry_corrupt and record["corrupt"]):
                record = _write_shard(path, numbers, layout, preparation, pool, workers or os.cpu_count() or 1, bar)
            else:
                bar.update(len(numbers))
            records.append(record)
            bar.set_postfix(shards=f"{shard + 1}/{len(starts)}", corrupt=sum(r["corrupt"] for r in records))
    manifest = _manifest(records, source, preparation, licence or LICENCES[preparation.layout])
    if not manifest["samples"]:
        raise DataError(
            f"None of the {len(order)} pictures in {source} can be decoded: download the data set again, then repeat the"
            " command with --retry-corrupt."
        )
    _write_json(target / MANIFEST, manifest)
    return manifest


def _check_same(target: Path, preparation: Preparation, names: list[str]) -> None:
    """Keep what this preparation is; refuse to go on with another's shards."""
    listing = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    now = asdict(preparation) | {"entries": len(names), "listing": listing}
    path = target / "preparation.json"
    if not path.is_file():
        if any(target.glob("*.tar")):
            raise DataError(f"Folder {target} already holds tar files of something else: choose another folder.")
        _write_json(path, now)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"File {path} is damaged ({error}): delete {target} and prepare anew.") from error
    different = [name for name, value in now.items() if before.get(name) != value]
    if different:
        name = different[0]
        what = "files of the data set" if name in ("entries", "listing") else f"setting {name}"
        raise DataError(
            f"Folder {target} was prepared with other values of the {what} ({before.get(name)!r}, now {now[name]!r}):"
            " choose another folder, or repeat the first command exactly to go on."
        )


def _record_path(shard: Path) -> Path:
    return shard.with_suffix(".json")


def _finished(shard: Path) -> dict[str, Any] | None:
    """The record of a shard that is whole."""
    try:
        record: dict[str, Any] = json.loads(_record_path(shard).read_text(encoding="utf-8"))
        return record if shard.stat().st_size == record["bytes"] else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write_shard(
    shard: Path,
    numbers: list[int],
    layout: Layout,
    preparation: Preparation,
    pool: ThreadPoolExecutor,
    workers: int,
    bar: Progress,
) -> dict[str, Any]:
    corrupt: list[dict[str, str]] = []
    samples, shortest, longest, picture_bytes = 0, sys.maxsize, 0, 0
    with replacing(shard) as part:
        with part.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as writer:
            for number, result in _encoded(numbers, layout, preparation, pool, ahead=4 * workers):
                name = layout.names[number]
                if isinstance(result, Exception):
                    log.warning("Skipped %s: %s", name, result)
                    corrupt.append({"name": name, "reason": str(result)})
                else:
                    about = {"name": name, "width": result.width, "height": result.height}
                    writer.write({"__key__": f"{number:08}", result.extension: result.data, "json": _json_bytes(about)})
                    samples += 1
                    shortest = min(shortest, result.width, result.height)
                    longest, picture_bytes = max(longest, result.width, result.height), picture_bytes + len(result.data)
                bar.update()
        record = {
            "name": shard.name,
            "samples": samples,
            "bytes": part.stat().st_size,
            "sha256": _sha256(part),
            "picture_bytes": picture_bytes,
            "shortest_side": shortest if samples else 0,
            "longest_side": longest,
            "corrupt": len(corrupt),
            "corrupt_names": corrupt,
        }
        # The record goes first: a shard without one is made again, a record without its shard counts for nothing.
        _write_json(_record_path(shard), record)
    return record


def _encoded(
    numbers: list[int], layout: Layout, preparation: Preparation, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[int, Encoded | Exception]]:
    """Entries in the order given, ``ahead`` of them in the making."""

    def make(number: int) -> Encoded | Exception:
        try:
            return encode(layout.read(number), preparation)
        except (OSError, ValueError) as error:
            return error

    running: deque[tuple[int, Future[Encoded | Exception]]] = deque()
    try:
        for number in numbers:
            running.append((number, pool.submit(make, number)))
            if len(running) > ahead:
                first, future = running.popleft()
                yield first, future.result()
        for number, future in running:
            yield number, future.result()
    finally:  # an interrupt must not wait for what was ordered ahead
        for _, future in running:
            future.cancel()


def _manifest(records: list[dict[str, Any]], source: Path, preparation: Preparation, licence: str) -> dict[str, Any]:
    whole = [record for record in records if record["samples"]]
    corrupt = [entry for record in records for entry in record["corrupt_names"]]
    return {
        "format": FORMAT,
        "version": VERSION,
        "source": source.name,
        "licence": licence,
        "preparation": asdict(preparation),
        "samples": sum(record["samples"] for record in records),
        "bytes": sum(record["bytes"] for record in records),
        "picture_bytes": sum(record["picture_bytes"] for record in records),
        "shortest_side": min((record["shortest_side"] for record in whole), default=0),
        "longest_side": max((record["longest_side"] for record in whole), default=0),
        "corrupt": len(corrupt),
        "corrupt_names": corrupt[:NAMED_CORRUPT],
        "shards": [
            {name: record[name] for name in ("name", "samples", "bytes", "sha256", "corrupt")} for record in records
        ],
    }


def _json_bytes(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=True, sort_keys=True).encode()


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(data, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
