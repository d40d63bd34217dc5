"""The training pictures: drawn once from a seed into a file, in chunks, so that drawing can resume."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from commands.progress import Progress

from .attributes import DOMAINS, Identity, Scene, celebrities, random_identity, random_scene
from .renderer import SIZE, render

log = logging.getLogger(__name__)
CHUNK = 128
CELEBRITY_SHARE = 0.4


@lru_cache(maxsize=4096)
def chunk_contents(seed: int, chunk: int) -> tuple[tuple[Identity, Scene], ...]:
    """Who and what is in the ``CHUNK`` pictures of one chunk; always of the training split."""
    rng = np.random.default_rng([seed, chunk])
    contents = []
    for _ in range(CHUNK):
        domain = str(rng.choice(list(DOMAINS), p=[d.share for d in DOMAINS.values()]))
        if rng.random() < CELEBRITY_SHARE:
            known = celebrities(domain)
            identity = known[list(known)[int(rng.integers(len(known)))]]
        else:
            identity = random_identity(rng, domain, "train")
        contents.append((identity, random_scene(rng)))
    return tuple(contents)


class Pictures:
    """``count`` training pictures as uint8 in ``folder``, drawn on first use.

    Indexing with a list of indices gives ``(B, 3, 128, 128)`` in [0, 1]; ``contents(i)`` tells what picture ``i`` shows.
    """

    def __init__(self, folder: Path, count: int, seed: int = 0) -> None:
        self.count, self.seed = count - count % CHUNK, seed
        folder.mkdir(parents=True, exist_ok=True)
        path, done_path = folder / f"pictures-{seed}.u8", folder / f"pictures-{seed}.done"
        shape = (self.count, 3, SIZE, SIZE)
        done = int(done_path.read_text()) if done_path.exists() else 0
        with open(path, "ab") as file:  # grows the file where an earlier run drew fewer
            file.truncate(max(path.stat().st_size, int(np.prod(shape))))
        data = np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)
        for chunk in Progress(range(done, self.count // CHUNK), desc="drawing pictures"):
            identities, scenes = zip(*chunk_contents(seed, chunk), strict=True)
            data[chunk * CHUNK : (chunk + 1) * CHUNK] = (render(identities, scenes) * 255).round().byte().numpy()
            data.flush()
            done_path.write_text(str(chunk + 1))
        self.data = np.array(data)

    def __getitem__(self, indices: Tensor | list[int]) -> Tensor:
        return torch.from_numpy(self.data[np.asarray(indices)]).float().div_(255)

    def contents(self, index: int) -> tuple[Identity, Scene]:
        return chunk_contents(self.seed, index // CHUNK)[index % CHUNK]

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
        """Endless seeded batches of indices; ``start`` skips what an interrupted run has seen."""
        step = start
        while True:
            yield np.random.default_rng([seed, step]).integers(self.count, size=size).tolist()
            step += 1


def shifted(pictures: Tensor, moves: Tensor) -> Tensor:
    """Every picture moved by ``moves`` ``(B, 2)`` pixels to the right and down, its border continued."""
    size, most = pictures.shape[-1], int(moves.abs().max())
    padded = F.pad(pictures, (most,) * 4, mode="replicate")
    starts = (most - moves).tolist()
    return torch.stack([p[:, y : y + size, x : x + size] for p, (x, y) in zip(padded, starts, strict=True)])
