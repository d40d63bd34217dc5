"""From pictures to what the loss is made of: latents and CLIP features, computed as they come, or once and kept."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from e4t_core.clip_backbone import ClipBackbone
from e4t_core.fingerprint import fingerprint

from .config import Config
from .data import Batch, TrainingData
from .networks import Base
from .pictures import CorruptSample, DataError, to_float
from .trained import Inputs

log = logging.getLogger(__name__)
UNKNOWN, READY, CORRUPT = 0, 1, 2


class Extractor:
    """The frozen networks that read a photo.

    They compute in their own types, without autocast. ``device`` is where they are.
    """

    def __init__(self, base: Base, backbone: ClipBackbone, device: torch.device) -> None:
        self.base, self.backbone, self.device = base, backbone, device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Latents ``(B, 4, h, w)`` and CLIP features ``(B, L, C)``, float32, of images ``(B, 3, S, S)`` uint8."""
        pixels = to_float(images.to(self.device, non_blocking=True))
        return self.base.vae.encode(pixels), self.backbone.cls_features(pixels)

    def key(self, config: Config, data: TrainingData) -> str:
        """Changes whenever the same row could give other features."""
        weights = {f"vae.{name}": value for name, value in self.base.vae.network.state_dict().items()}
        weights |= {f"backbone.{name}": value for name, value in self.backbone.tower.state_dict().items()}
        sources = [
            (s.kind, s.path, s.column, s.factory, sorted(s.options.items()), s.alpha_mask) for s in config.data.sources
        ]
        return fingerprint(weights, repr((config.domain.image_size, self.backbone.info.layers, sources, data.probe())))


def live_inputs(loader: Iterable[Batch], extractor: Extractor) -> Iterator[Inputs]:
    """Inputs of a loader's batches, computed as they come."""
    for batch in loader:
        latents, features = extractor(batch.images)
        masks = None if batch.masks is None else to_float(batch.masks.to(extractor.device))
        yield Inputs(latents, features, masks, tuple(batch.indices.tolist()), batch.corrupt)


class FeatureCache:
    """Latents, CLIP features and masks of all rows of the data in plain files, made before training starts.

    Numbers are kept as float16: half the room, and finer than what a half-precision run computes with.

    Args:
        folder: of the files; another ``key`` takes another subfolder.
        rows: of the data.
        key: of :meth:`Extractor.key`.
    """

    def __init__(self, folder: Path, rows: int, key: str) -> None:
        self.folder, self.rows = folder / f"{key[:12]}-{rows}", rows
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state = self._file("state.u8", (), np.dtype(np.uint8))
        self._parts: dict[str, np.ndarray] = {}
        self.reasons: dict[int, str] = {}

    def _file(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        path, size = self.folder / name, self.rows * int(np.prod(shape)) * dtype.itemsize
        try:
            with open(path, "ab") as file:
                if file.tell() < size:
                    file.truncate(size)
        except OSError as error:
            raise DataError(
                f"The cache of features {path} needs {size / 1e9:.1f} GB ({error}): make room, choose another"
                " data.cache_folder, or set data.cache_features to false."
            ) from error
        return np.memmap(path, dtype=dtype, mode="r+", shape=(self.rows, *shape))

    def _part(self, name: str, like: Tensor) -> np.ndarray:
        if name not in self._parts:
            self._parts[name] = self._file(f"{name}.f16", tuple(like.shape[1:]), np.dtype(np.float16))
        return self._parts[name]

    def fill(self, data: TrainingData, extractor: Extractor, batch: int, process: int = 0, processes: int = 1) -> None:
        """Compute what is missing of this process's rows (every ``processes``-th); what was made before stays.

        Raises:
            DataError: a picture's mask is missing where others have one, or the disk is full.
        """
        mine = range(process, self.rows, processes)
        # A first batch is always made: it tells the shapes.
        todo = [row for row in mine if self.state[row] != READY]
        first = [row for row in mine if self.state[row] == READY][:1]
        progress = tqdm(total=len(todo), desc="latents and features, once", disable=None if process == 0 else True)
        for start in range(0, max(len(todo), 1), batch):
            self._compute(data, extractor, (first if not start else []) + todo[start : start + batch])
            progress.update(min(batch, max(len(todo) - start, 0)))
        progress.close()

    def check_whole(self) -> None:
        """That no row is missing, once all processes have filled their share.

        Raises:
            DataError: another node has filled its share elsewhere.
        """
        missing = int((self.state == UNKNOWN).sum())
        if missing:
            raise DataError(
                f"The cache of features {self.folder} lacks {missing} of {self.rows} rows, which other processes have made:"
                " put data.cache_folder on a disk that all nodes share."
            )

    def _compute(self, data: TrainingData, extractor: Extractor, rows: list[int]) -> None:
        images, masks, good = [], [], []
        for row in rows:
            try:
                picture = data.read_row(row)
            except CorruptSample as error:
                self.reasons[row], self.state[row] = str(error), CORRUPT
                continue
            good.append(row)
            images.append(picture.image)
            masks.extend([] if picture.mask is None else [picture.mask])
        if not good:
            return
        others = bool((self.state == READY).any()) and (self.folder / "masks.f16").exists() != bool(masks)
        if (masks and len(masks) < len(good)) or others:
            raise DataError("Some data sources have masks and some have none: use sources of one sort.")
        latents, features = extractor(torch.stack(images))
        found = {"latents": latents, "features": features}
        if masks:
            size = (latents.shape[-2], latents.shape[-1])
            found["masks"] = F.interpolate(to_float(torch.stack(masks)), size=size, mode="bilinear", antialias=True)
        for name, value in found.items():
            # float16 ends at 65504; nothing that a backbone says comes near.
            self._part(name, value)[good] = value.cpu().half().numpy()
        self.state[good] = READY

    def take(self, rows: list[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """Latents, features and masks (or None) of rows that are ready, float32."""

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(np.asarray(self._parts[name][rows])).to(device).float()

        return tensor("latents"), tensor("features"), tensor("masks") if "masks" in self._parts else None


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
