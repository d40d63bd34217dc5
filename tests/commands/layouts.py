"""Small training data in every layout, drawn by the tests themselves."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, width: int = 40, height: int = 40, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A plain picture whose red value is its number, so that a test can tell which one it was."""
    image = Image.new("RGB", (width, height), (number % 256, number // 256, 77)).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind != "PNG" else {}))
    return file.getvalue()


def noise(number: int, side: int = 40, kind: str = "JPEG") -> bytes:
    """A picture that does not compress."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def make_folder(folder: Path, count: int, corrupt: Iterable[int] = ()) -> Path:
    """``count`` pictures in sub-folders of 10; the corrupt ones are cut in the middle."""
    for number in range(count):
        path = folder / f"{number // 10:02}" / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = noise(number, kind="PNG") if number in set(corrupt) else picture(number)
        path.write_bytes(data[: len(data) // 2] if number in set(corrupt) else data)
    return folder


def make_shards(folder: Path, sizes: Sequence[int]) -> Path:
    """Shards of plain pictures with a text beside each, numbered through."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"part-{shard:03}.tar", "w") as archive:
            for _ in range(size):
                about = json.dumps({"number": number}).encode()
                for name, data in ((f"{number:05}.json", about), (f"{number:05}.png", picture(number))):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
                number += 1
    return folder


def make_parquet(path: Path, count: int, group: int, struct: bool = True) -> Path:
    """A parquet file of plain pictures, as published data sets have them (struct of bytes and path), or plain bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [picture(number) for number in range(count)]
    column = [{"bytes": row, "path": f"{number}.png"} for number, row in enumerate(rows)] if struct else rows
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": column, "label": list(range(count))}), path, row_group_size=group)
    return path
