"""What the loss of a micro-batch is made of, from pictures that are read now or from the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from commands.pretrain.data.micro_batches import Batch
from commands.pretrain.data.pictures import DataError, to_float
from commands.pretrain.data.training_data import TrainingData

from .extractor import Extractor
from .feature_cache import READY, FeatureCache


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a micro-batch's loss is made of, on the device.

    Attributes:
        latents: ``(B, 4, h, w)`` float32.
        clip_features: ``(B, L, C)`` float32.
        masks: ``(B, 1, H, W)`` float32 in 0-1, or None.
        indices: B global sample indices.
        corrupt: ``(row, label: reason)`` of samples that were skipped.
    """

    latents: Tensor
    clip_features: Tensor
    masks: Tensor | None
    indices: tuple[int, ...]
    corrupt: tuple[tuple[int, str], ...] = ()


def live_inputs(loader: Iterable[Batch], extractor: Extractor) -> Iterator[Inputs]:
    """Inputs of a loader's batches, computed as they come."""
    for batch in loader:
        latents, features = extractor(batch.images)
        masks = None if batch.masks is None else to_float(batch.masks.to(extractor.device))
        yield Inputs(latents, features, masks, tuple(batch.indices.tolist()), batch.corrupt)


def cached_inputs(
    cache: FeatureCache, data: TrainingData, batches: Iterable[list[int]], device: torch.device
) -> Iterator[Inputs]:
    """Inputs from a filled cache: the very samples that reading the pictures would give."""
    for indices in batches:
        rows, corrupt = [], []
        for index in indices:
            for row in data.rows_for(index):
                if cache.state[row] == READY:
                    rows.append(row)
                    break
                corrupt.append((row, cache.reasons.get(row, f"row {row} of the data")))
            else:
                raise DataError(f"No picture could be read for sample {index}: prepare the data again.")
        yield Inputs(*cache.take(rows, device), tuple(indices), tuple(corrupt))
