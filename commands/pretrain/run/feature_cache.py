"""From pictures to what the loss is made of: latents and CLIP features, computed as they come, or once and kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from commands.pretrain.data.pictures import CorruptSample, DataError, to_float
from commands.pretrain.data.training_data import TrainingData
from commands.progress import Progress

from .extractor import Extractor

log = logging.getLogger(__name__)
UNKNOWN, READY, CORRUPT = 0, 1, 2
STATE = "state.u8"  # a byte for each row


class FeatureCache:
    """Latents, CLIP features and masks of all rows of the data in plain files, made before training starts.

    Numbers are kept as float16: half the room, and finer than what a half-precision run computes with. Rows are written
    with ordinary writes, not through mapped memory: a full disk is then an error instead of a signal, and nodes that
    share the files over a network write their own bytes only.

    Args:
        folder: of the files; another ``key`` takes another subfolder.
        rows: of the data.
        key: of :meth:`Extractor.key`.
        masks: keep them.
    """

    def __init__(self, folder: Path, rows: int, key: str, masks: bool = True) -> None:
        self.folder, self.rows, self._masks = folder / f"{key[:12]}-{rows}", rows, masks
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / STATE).exists():
            self._write(STATE, [], np.zeros(0, np.uint8))
        self.state = self._read_state()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._maps: dict[str, np.ndarray] = {}
        self.reasons: dict[int, str] = {}

    def _read_state(self) -> np.ndarray:
        found = np.fromfile(self.folder / STATE, np.uint8)[: self.rows]
        return np.pad(found, (0, self.rows - len(found)))

    def _write(self, name: str, rows: list[int], values: np.ndarray) -> None:
        """Write each row's values where it lies in a file, which is made if need be."""
        path = self.folder / name
        path.touch()
        try:
            with open(path, "r+b") as file:
                for row, value in zip(rows, values, strict=True):
                    file.seek(row * value.nbytes)
                    file.write(value.tobytes())
        except OSError as error:
            raise DataError(
                f"The cache of features {path} could not be written ({error}): make room, choose another"
                " data.cache_folder, or set data.cache_features to false; what is done is kept."
            ) from error

    def fill(
        self,
        data: TrainingData,
        extractor: Extractor,
        batch: int,
        process: int = 0,
        processes: int = 1,
        found: Callable[[list[tuple[int, str]]], None] = lambda corrupt: None,
    ) -> None:
        """Compute what is missing of this process's rows (every ``processes``-th); what was made before stays.

        Args:
            found: told the corrupt rows of every batch and why; may raise to stop.

        Raises:
            DataError: a picture's mask is missing where others have one, or the disk is full.
        """
        mine = range(process, self.rows, processes)
        # A first batch is always made: it tells the shapes.
        todo = [row for row in mine if self.state[row] != READY]
        first = [row for row in mine if self.state[row] == READY][:1]
        progress = Progress(total=len(todo), desc="latents and features, once", disable=process != 0)
        for start in range(0, max(len(todo), 1), batch):
            rows = (first if not start else []) + todo[start : start + batch]
            self._compute(data, extractor, rows)
            found([(row, self.reasons[row]) for row in rows if row in self.reasons])
            progress.update(min(batch, max(len(todo) - start, 0)))
        progress.close()

    def check_whole(self) -> None:
        """Read what all processes have made, once they have filled their share.

        Raises:
            DataError: a row is missing: another node has filled its share elsewhere.
        """
        self.state = self._read_state()
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
                self.reasons[row] = str(error)
                self._mark([row], CORRUPT)
                continue
            good.append(row)
            images.append(picture.image)
            masks.extend([] if picture.mask is None or not self._masks else [picture.mask])
        if not good:
            return
        others = bool((self.state == READY).any()) and (self.folder / "masks.f16").exists() != bool(masks)
        if (masks and len(masks) < len(good)) or others:
            raise DataError("Some data sources have masks and some have none: use sources of one sort.")
        latents, features = extractor(torch.stack(images))
        made = {"latents": latents, "features": features}
        if masks:
            size = (latents.shape[-2], latents.shape[-1])
            made["masks"] = F.interpolate(to_float(torch.stack(masks)), size=size, mode="bilinear", antialias=True)
        for name, value in made.items():
            self._shapes[name] = tuple(value.shape[1:])
            # float16 ends at 65504; nothing that a backbone says comes near.
            self._write(f"{name}.f16", good, value.cpu().half().numpy())
        self._mark(good, READY)

    def _mark(self, rows: list[int], state: int) -> None:
        self.state[rows] = state
        self._write(STATE, rows, np.full((len(rows), 1), state, np.uint8))

    def take(self, rows: list[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """Latents, features and masks (or None) of rows that are ready, float32."""

        def tensor(name: str) -> Tensor:
            if name not in self._maps:
                path, shape = self.folder / f"{name}.f16", self._shapes[name]
                whole = path.stat().st_size // (2 * int(np.prod(shape)))  # the last rows may be corrupt
                self._maps[name] = np.memmap(path, np.float16, "r", shape=(whole, *shape))
            return torch.from_numpy(self._maps[name][rows]).to(device).float()

        return tensor("latents"), tensor("features"), tensor("masks") if "masks" in self._shapes else None
