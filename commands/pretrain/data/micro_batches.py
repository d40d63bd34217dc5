"""Which samples a process takes, micro-batch by micro-batch, and the workers that read them ahead."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .pictures import DataError
from .training_data import Sample, TrainingData


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of a micro-batch.

    Attributes:
        images: ``(B, 3, S, S)`` uint8; ``pictures.to_float`` makes [0, 1] of them on the device.
        masks: ``(B, 1, S, S)`` uint8, 255 where the loss counts, or None.
        indices: ``(B,)`` int64, global sample indices, for ``e4t_core.diffusion.draw_samples``.
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


class _Batches:
    """What DataLoader takes as its batch sampler, of any iterable: a generator is none."""

    def __init__(self, batches: Iterable[list[int]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)


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
        batch_sampler=_Batches(batches),
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
