"""Training data: the sample of every global index, and the micro-batches of a process.

Optimiser step n of a run sees the global sample indices ``n * batch`` to ``(n + 1) * batch - 1``; process r of R takes the
r-th of R equal runs of them. Which picture an index means is decided by (seed, index) alone, see ``order``. So the order
is the same for any number of workers, processes and nodes, and a run goes on at any step as if it had never stopped. Only
the set of files must be the same.

A corrupt sample's place is taken by another of its source, which depends on (seed, index) as well.
"""

from __future__ import annotations

import hashlib
import logging
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from commands.pretrain.config.sections import Config

from .configured_sources import open_configured_source
from .pictures import CorruptSample, DataError, Picture, shorter_side
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


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of a micro-batch.

    Attributes:
        images: ``(B, 3, S, S)`` uint8; ``pictures.to_float`` makes [0, 1] of them on the device.
        masks: ``(B, 1, S, S)`` uint8, 255 where the loss counts, or None.
        indices: ``(B,)`` int64, global sample indices, for ``e4t_core.objective.draw_samples``.
        rows: ``(B,)`` int64, numbers of the pictures over all sources.
        corrupt: ``(row, label: reason)`` of samples that were skipped.
    """

    images: Tensor
    masks: Tensor | None
    indices: Tensor
    rows: Tensor
    corrupt: tuple[tuple[int, str], ...]

    def pin_memory(self) -> Batch:
        """The same in page-locked memory; DataLoader calls it."""
        return replace(
            self, images=self.images.pin_memory(), masks=None if self.masks is None else self.masks.pin_memory()
        )


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
        return shorter_side(source.encoded(row - int(self._first_rows[number]))) < self.size

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


def open_data(config: Config) -> TrainingData:
    """The training data of a config.

    Raises:
        DataError: a source is missing, empty or of another kind, or its factory refuses its options.
    """
    sources: list[Source] = []
    for entry in config.data.sources:
        place: dict[str, Any] = {
            "window": entry.window,
            "column": entry.column,
            "factory": entry.factory,
            "options": entry.options,
            "alpha_mask": entry.alpha_mask,
        }
        try:
            sources.append(open_configured_source(entry.kind, Path(entry.path), **place))
        except DataError:
            raise
        except (TypeError, ValueError) as error:
            raise DataError(f"Data source {entry.factory} refuses its options {entry.options}: {error}") from error
    weights = [entry.weight for entry in config.data.sources]
    return TrainingData(sources, weights, config.domain.image_size, config.training.seed)


class Collect:
    """Makes a :class:`Batch` of samples, or hands on the error that one of them met.

    Args:
        masks: whether masks are wanted; else sources with and without can be mixed.
    """

    def __init__(self, masks: bool = True) -> None:
        self._masks = masks

    def __call__(self, samples: Sequence[Sample | DataError]) -> Batch | DataError:
        for sample in samples:
            if isinstance(sample, DataError):
                return sample
        return self._batch([sample for sample in samples if isinstance(sample, Sample)])

    def _batch(self, samples: Sequence[Sample]) -> Batch | DataError:
        masks = [sample.picture.mask for sample in samples if self._masks and sample.picture.mask is not None]
        if masks and len(masks) < len(samples):
            return DataError("Some data sources have masks and some have none: use sources of one sort.")
        return Batch(
            torch.stack([sample.picture.image for sample in samples]),
            torch.stack(masks) if masks else None,
            torch.tensor([sample.index for sample in samples]),
            torch.tensor([sample.row for sample in samples]),
            tuple(entry for sample in samples for entry in sample.corrupt),
        )


def micro_batches(
    first_step: int, steps: int, batch: int, micro_batch: int, process: int = 0, processes: int = 1
) -> Iterator[list[int]]:
    """The global sample indices of one process, micro-batch by micro-batch, from ``first_step`` to ``steps`` (exclusive).

    Raises:
        DataError: the batch cannot be shared out evenly.
    """
    if batch % processes:
        raise DataError(
            f"A batch of {batch} cannot be shared evenly by {processes} processes: make training.batch a multiple of it."
        )
    share = batch // processes
    for step in range(first_step, steps):
        start = step * batch + process * share
        for offset in range(0, share, micro_batch):
            yield list(range(start + offset, start + min(offset + micro_batch, share)))


class _Told(Dataset["Sample | DataError"]):
    """Gives an error instead of raising it: what a worker raises arrives as a traceback in a text."""

    def __init__(self, data: TrainingData) -> None:
        self._data = data

    def __getitem__(self, index: int) -> Sample | DataError:
        try:
            return self._data[index]
        except DataError as error:
            return error


def make_loader(
    data: TrainingData,
    batches: Iterable[list[int]],
    workers: int,
    prefetch: int = 4,
    pin: bool = False,
    masks: bool = True,
) -> Iterator[Batch]:
    """Every :class:`Batch`, in the order of ``batches``, whatever the number of workers (0: this process).

    Every worker makes whole micro-batches, ``prefetch`` ahead. No global random stream is touched.

    Raises:
        DataError: nothing could be read for a sample, or some have a mask and some have none and ``masks`` are wanted.
    """
    loader: DataLoader[Any] = DataLoader(
        _Told(data),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=Collect(masks),
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin,
        generator=torch.Generator(),
        worker_init_fn=_quiet_worker,
    )
    for made in loader:
        if isinstance(made, DataError):
            raise made
        yield made


def _quiet_worker(worker: int) -> None:
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        # Ctrl-C and cluster managers signal the whole group, but the run still needs its workers to end a step and save.
        signal.signal(number, signal.SIG_IGN)


class CorruptionCount:
    """Which samples were found corrupt, and whether they are too many.

    Counted are distinct rows, against all rows of the data, so that neither the order nor further epochs change the
    verdict. A process counts what it saw; ``add`` what the others tell to know all.

    Args:
        rows: of the data.
        most: share that is borne (0.01).
    """

    def __init__(self, rows: int, most: float) -> None:
        self.rows, self.most = rows, most
        self.found: dict[int, str] = {}

    def add(self, corrupt: Iterable[tuple[int, str]]) -> None:
        """Count what a batch met; each new one is logged.

        Raises:
            DataError: more than the share that is borne is corrupt.
        """
        for row, text in corrupt:
            if row not in self.found:
                self.found[row] = text
                log.warning("Corrupt sample skipped (%d so far): %s", len(self.found), text)
        if len(self.found) > self.most * self.rows:
            raise DataError(
                f"{len(self.found)} of {self.rows} samples are corrupt, more than {self.most:.2%}; the last was"
                f" {list(self.found.values())[-1]}: prepare the data again, or raise data.most_corrupt."
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"found": dict(self.found)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from a checkpoint."""
        self.found = {int(row): str(text) for row, text in state["found"].items()}
