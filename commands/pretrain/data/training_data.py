"""Training data: the sample of every global index, and the micro-batches of a process.

Optimizer step n of a run sees the global sample indices ``n * batch`` to ``(n + 1) * batch - 1``; process r of R takes the
r-th of R equal runs of them. Which picture an index means is decided by (seed, index) alone, see ``order``. So the order
is the same for any number of workers, processes and nodes, and a run goes on at any step as if it had never stopped. Only
the set of files must be the same.

A corrupt sample's place is taken by another of its source, which depends on (seed, index) as well.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from .pictures import CorruptSample, DataError, Picture, picture_header
from .sample_order import EpochOrder, Mix, hash64
from .sources import EncodedSource, Source

log = logging.getLogger(__name__)
ATTEMPTS = 100
PROBES = 16


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture, whence it came, and what was met on the way.

    Attributes:
        picture: see :class:`~.pictures.Picture`.
        index: global sample index.
        row: number of the picture over all sources; a cache's key.
        corrupt: ``(row, label: reason)`` of samples that were skipped for it.
    """

    picture: Picture
    index: int
    row: int
    corrupt: tuple[tuple[int, str], ...] = ()


class TrainingData(Dataset[Sample]):
    """Sources mixed by weight; item i is the sample with global index i, for any i from 0 on.

    Args:
        sources: at least one; their order belongs to the order of the samples.
        weights: one positive number per source.
        size: side of the pictures in pixels.
        seed: of the run.

    Raises:
        DataError: some sources have masks and some have not (at reading), or a source is empty.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], size: int, seed: int) -> None:
        self.sources, self.size, self.seed = tuple(sources), size, seed
        try:
            self._mix = Mix(weights, seed)
            self._orders = [EpochOrder(s.parts, s.window, seed, str(number)) for number, s in enumerate(sources)]
        except ValueError as error:
            raise DataError(f"The data sources cannot be mixed: {error}") from error
        self._first_rows = np.concatenate([[0], np.cumsum([order.rows for order in self._orders])])

    @property
    def rows(self) -> int:
        """How many pictures all sources hold."""
        return int(self._first_rows[-1])

    def probe(self) -> str:
        """A hash of some pictures, as they are now: other data at the same place has another one."""
        digest = hashlib.sha256()
        for row in sorted({number * self.rows // PROBES for number in range(PROBES)}):
            try:
                digest.update(self.read_row(row).image.numpy().tobytes())
            except CorruptSample:
                digest.update(b"corrupt")
        return digest.hexdigest()[:16]

    def read_row(self, row: int) -> Picture:
        """The picture of a row, whichever source it lies in.

        Raises:
            CorruptSample: it cannot be read.
        """
        source = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        return self.sources[source].read(row - int(self._first_rows[source]), self.size)

    def is_enlarged(self, row: int) -> bool:
        """Whether a row's picture is smaller than what is made of it; False where that is not known."""
        number = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        source = self.sources[number]
        if not isinstance(source, EncodedSource):
            return False
        return picture_header(source.encoded(row - int(self._first_rows[number])))[1] < self.size

    def rows_for(self, index: int) -> Iterator[int]:
        """The row of a sample, then those that take its place where that is corrupt: ``ATTEMPTS`` in all."""
        source, within = self._mix.locate(index)
        rows, first = self._orders[source].rows, int(self._first_rows[source])
        yield first + self._orders[source].row(within)
        for attempt in range(ATTEMPTS - 1):
            yield first + hash64("replacement", self.seed, index, attempt) % rows

    def __getitem__(self, index: int) -> Sample:
        corrupt: list[tuple[int, str]] = []
        for row in self.rows_for(index):
            try:
                return Sample(self.read_row(row), index, row, tuple(corrupt))
            except CorruptSample as error:
                corrupt.append((row, str(error)))
        raise DataError(
            f"{ATTEMPTS} samples in a row could not be read, the last was {corrupt[-1][1]}: prepare the data again."
        )
