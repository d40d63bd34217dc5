"""Which row of the data a global sample index stands for: a pure function of (seed, index), whoever asks.

Nothing here has a state that a resumed run would have to restore, and nothing knows of workers or processes. That is why
these orders are not webdataset's: its shards are dealt out to nodes and workers and shuffled in a buffer, so the order
depends on how many there are, and a run can only be continued by reading again all that it has read.

Numbers come from SHA-256 and splitmix64 (Steele, Lea, Flood 2014), not from a library's generator, whose stream may
change with its version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .recently_used import RecentlyUsed

Rows = NDArray[np.int64]
MIX_BLOCK = 1000


def hash64(*key: object) -> int:
    """64 even bits from a key; parts are told apart by their text."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8], "little")


def permutation(count: int, *key: object) -> Rows:
    """A permutation of 0..count-1 that depends on the key alone: ``(count,)`` int64."""
    state = np.uint64(hash64(*key)) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(state ^ (state >> np.uint64(31)), kind="stable").astype(np.int64)


class EpochOrder:
    """The endless order in which one source's rows are seen: every epoch each row once, every epoch in another order.

    The parts (shards, parquet row groups) are shuffled anew each epoch; ``window`` of them at a time are mixed
    thoroughly. So a reader has at most ``window`` parts open, and a larger window mixes better. A folder is one part.

    Args:
        parts: how many rows each part holds, in file order; rows are numbered through.
        window: how many parts are mixed at once.
        seed: of the run.
        name: of the source, to keep two sources of one seed apart.

    Raises:
        ValueError: there is no row at all.
    """

    def __init__(self, parts: Sequence[int], window: int, seed: int, name: str = "") -> None:
        self._sizes = np.asarray(parts, dtype=np.int64)
        self._sizes_before = np.concatenate([[0], np.cumsum(self._sizes)])
        self.rows = int(self._sizes_before[-1])
        if self.rows == 0:
            raise ValueError("An order needs at least one row.")
        self._window, self._key = window, ("epoch order", seed, name)
        self._epochs: RecentlyUsed[int, tuple[Rows, Rows]] = RecentlyUsed(2)
        self._windows: RecentlyUsed[tuple[int, int], Rows] = RecentlyUsed(3)

    def row(self, index: int) -> int:
        """The row, 0..rows-1, that is this source's ``index``-th (from 0, over all epochs)."""
        epoch, place = divmod(index, self.rows)
        parts, ends = self._epochs.get(epoch, lambda: self._plan(epoch))
        number = int(np.searchsorted(ends, place, side="right"))
        rows = self._windows.get((epoch, number), lambda: self._mixed(epoch, number, parts))
        return int(rows[place - (int(ends[number - 1]) if number else 0)])

    def _plan(self, epoch: int) -> tuple[Rows, Rows]:
        """The parts in this epoch's order, and where each window of them ends."""
        parts = permutation(len(self._sizes), *self._key, epoch)
        ends = np.cumsum(self._sizes[parts])
        last = np.append(np.arange(self._window - 1, len(parts) - 1, self._window), len(parts) - 1)
        return parts, ends[last]

    def _mixed(self, epoch: int, number: int, parts: Rows) -> Rows:
        chosen = parts[number * self._window : (number + 1) * self._window]
        rows = np.concatenate([np.arange(self._sizes_before[p], self._sizes_before[p + 1]) for p in chosen])
        return rows[permutation(len(rows), *self._key, epoch, number)]


class Mix:
    """Several sources by weight: which source a global sample index takes from, and which of its samples that is.

    Every block of 1,000 indices holds each source exactly in proportion (to 1 in 1,000), in a shuffled order.

    Args:
        weights: one positive number per source; only their ratios count.
        seed: of the run.

    Raises:
        ValueError: a source would get no sample in a block.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        exact = np.asarray(weights, dtype=np.float64) / sum(weights) * MIX_BLOCK
        counts = np.floor(exact).astype(np.int64)
        # Largest remainder: what rounding down left over goes to those who lost most.
        counts[np.argsort(counts - exact, kind="stable")[: MIX_BLOCK - int(counts.sum())]] += 1
        if (counts == 0).any():
            raise ValueError(
                f"Weight {weights[int(np.argmin(counts))]:g} is less than 1 in {MIX_BLOCK} of all weights: raise it,"
                " or leave that source out."
            )
        self.counts, self._seed = counts, seed
        self._blocks: RecentlyUsed[int, Rows] = RecentlyUsed(2)

    def locate(self, index: int) -> tuple[int, int]:
        """``(source, index within that source)`` of a global sample index."""
        if len(self.counts) == 1:
            return 0, index
        block, within = divmod(index, MIX_BLOCK)
        slots = self._blocks.get(block, lambda: self._slots(block))
        source = int(slots[within])
        return source, block * int(self.counts[source]) + int((slots[:within] == source).sum())

    def _slots(self, block: int) -> Rows:
        slots = np.repeat(np.arange(len(self.counts)), self.counts)
        return slots[permutation(MIX_BLOCK, "mix", self._seed, block)]
