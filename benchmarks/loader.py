"""``python -m benchmarks.loader``: how fast pre-training's loader alone delivers pictures, and whether its memory stays flat.

It draws pictures with the detail of photos, has ``commands.prepare`` make shards of them, and measures: each part of
the work alone in this process (read, decode, crop and resize, tensor), the way from a worker to this process alone, and
the whole loader. Then it goes through 100,000 samples, on smaller pictures, and prints the resident memory on the way.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from commands.pretrain.data.micro_batches import make_loader, micro_batches
from commands.pretrain.data.pictures import Picture, open_rgb, square, to_tensor
from commands.pretrain.data.preparation import Preparation
from commands.pretrain.data.prepare_shards import prepare
from commands.pretrain.data.shard_source import ShardSource
from commands.pretrain.data.training_data import TrainingData
from commands.progress import Progress

from .report import gate, table

FOLDER = Path(__file__).parent.parent / "runs" / "bench_loader"
DISTINCT, COPIES, PER_SHARD = 250, 8, 250
BATCH = 16
LEAST_PER_PAIR = 200.0
MOST_GROWTH = 0.05


class Ready:
    """A source whose pictures are ready: what is left is the way to the training process."""

    parts: Sequence[int] = (1000,)
    window = 1

    def read(self, row: int, size: int) -> Picture:
        return Picture(torch.zeros(3, size, size, dtype=torch.uint8))


def photo_like(number: int, width: int, height: int) -> Image.Image:
    """Noise whose strength falls with its frequency, as that of photos does; a JPEG of it is about as large as one's."""
    rng = np.random.default_rng(number)
    picture = np.zeros((height, width, 3), dtype=np.float32)
    for octave in range(2, 10):
        side = 2**octave
        noise = (rng.standard_normal((side, side, 3)) * 8 + 128).clip(0, 255).astype(np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        picture += (np.asarray(layer, dtype=np.float32) - 128) * (22 / octave)
    return Image.fromarray((picture / 4 + 128).clip(0, 255).astype(np.uint8))


def make_shards(side: int) -> Path:
    """Shards of photo-like JPEGs, ``1.25 * side`` by ``side`` pixels, drawn once."""
    drawn, shards = FOLDER / f"drawn-{side}", FOLDER / f"shards-{side}"
    if (shards / "manifest.json").is_file():
        return shards
    drawn.mkdir(parents=True, exist_ok=True)
    for number in Progress(range(DISTINCT), desc="drawing pictures"):
        file = io.BytesIO()
        photo_like(number, side * 5 // 4, side).save(file, "JPEG", quality=95)
        for copy in range(COPIES):
            (drawn / f"{number:04}-{copy}.jpg").write_bytes(file.getvalue())
    prepare(drawn, shards, Preparation("folder", side=0, per_shard=PER_SHARD), licence="drawn")
    shutil.rmtree(drawn)
    return shards


def per_second(work: Callable[[int], object], seconds: float) -> float:
    """How often ``work(0)``, ``work(1)`` … is done in a second."""
    work(0)
    start = time.perf_counter()
    for number in itertools.count(1):
        work(number)
        if (passed := time.perf_counter() - start) >= seconds:
            return number / passed
    raise AssertionError("an endless count has ended")


def loader_rate(data: TrainingData, workers: int, batches: int) -> float:
    """Images per second that reach this process, after the workers' start."""
    loader = iter(make_loader(data, micro_batches(0, batches + 2 * workers + 1, BATCH, BATCH), workers))
    for _ in range(2 * workers + 1):
        next(loader)
    start, images = time.perf_counter(), 0
    for batch in Progress(loader, total=batches, desc=f"{workers} worker(s)", leave=False):
        images += len(batch.images)
    return images / (time.perf_counter() - start)


def parts(shards: Path, side: int, seconds: float) -> list[tuple[str, float]]:
    """Rates of the parts of the work, each alone, in one process."""
    source = ShardSource(shards, window=8)
    rows = sum(source.parts)
    encoded = [source.encoded(row) for row in range(64)]
    decoded = [open_rgb(data) for data in encoded]
    squares = [square(image, side) for image in decoded]
    return [
        ("read from shards, at random", per_second(lambda i: source.encoded(i * 7919 % rows), seconds)),
        ("decode JPEG", per_second(lambda i: open_rgb(encoded[i % 64]), seconds)),
        ("crop (no resize)", per_second(lambda i: square(decoded[i % 64], side), seconds)),
        ("crop and resize to 3/4", per_second(lambda i: square(decoded[i % 64], side * 3 // 4), seconds)),
        ("to tensor", per_second(lambda i: to_tensor(squares[i % 64]), seconds)),
    ]


def resident() -> int:
    """Bytes that this process and its workers have resident, shared pages counted in each."""
    own = psutil.Process()
    return sum(process.memory_info().rss for process in (own, *own.children(recursive=True)))


def memory(side: int, samples: int, workers: int, intervals: int = 10) -> list[tuple[int, int]]:
    """``(samples seen, resident bytes)`` at even intervals."""
    data = TrainingData([ShardSource(make_shards(side), window=4)], [1], side, seed=0)
    steps = samples // BATCH
    found = []
    loader = make_loader(data, micro_batches(0, steps, BATCH, BATCH), workers)
    for step, _ in enumerate(Progress(loader, total=steps, desc="memory", leave=False), 1):
        if step % max(1, steps // intervals) == 0:
            found.append((step * BATCH, resident()))
    return found


def main() -> int:
    """The command; its exit status is 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="of the pictures in pixels")
    parser.add_argument("--workers", type=int, default=2, help="reading processes")
    parser.add_argument("--batches", type=int, default=200, help="of 16 pictures, for the whole loader's rate")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each part")
    parser.add_argument("--memory-samples", type=int, default=100_000)
    parser.add_argument("--memory-side", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shards = make_shards(options.side)
    size = sum(path.stat().st_size for path in shards.glob("*.tar")) / (DISTINCT * COPIES)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(
        f"{DISTINCT * COPIES} pictures of {options.side * 5 // 4}×{options.side}, {size / 1e3:.0f} kB each; {cores} cores\n"
    )
    rates = parts(shards, options.side, options.seconds)
    ready = TrainingData([Ready()], [1], options.side, seed=0)
    rates.append(
        (f"{options.workers} worker(s) to here, nothing else", loader_rate(ready, options.workers, options.batches))
    )
    data = TrainingData([ShardSource(shards, window=8)], [1], options.side, seed=0)
    rates.append(("whole loader, no worker", loader_rate(data, 0, max(1, options.batches // 4))))
    whole = loader_rate(data, options.workers, options.batches)
    rates.append((f"whole loader, {options.workers} worker(s)", whole))
    print(table(("", "images/s", "ms each"), [(name, f"{rate:.0f}", f"{1e3 / rate:.2f}") for name, rate in rates]))
    slowest = min(rates[:5], key=lambda entry: entry[1])
    print(f"\nWhat bounds it: {slowest[0]}, the slowest part.\n")
    busy = min(cores, options.workers)
    per_pair = whole / max(1.0, busy / 2)
    met = gate(
        "images/s per pair of cores",
        per_pair,
        least=LEAST_PER_PAIR,
        detail=f"{options.workers} workers on {cores} cores",
    )
    print()
    found = memory(options.memory_side, options.memory_samples, options.workers)
    print(table(("samples", "resident MB"), [(seen, f"{size / 1e6:.1f}") for seen, size in found]))
    growth = found[-1][1] / found[0][1] - 1
    print()
    met &= gate("growth of memory", growth, most=MOST_GROWTH)
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
