"""``python -m benchmarks.atlas``: all 64 held-out identities on one sheet, so that nobody can pick favourites.

A row for each identity, in the order by hash (the first is the demo's): the photo, what E4T (with a mask of the
subject) draws for a few of the benchmark's prompts, and under them the same with the domain word. Pictures come from
runs/quality where the quality benchmark has drawn them; the others are drawn now.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid
from tqdm import tqdm

from .arms import WEIGHTS, Drawer
from .picture_cache import cached
from .quality import load_subjects, picture_file

COLUMNS = (0, 1, 2, 3, 6, 8, 9, 10)  # of the 11 prompts: one or two of each class, both compounds
ARMS = ("e4t mask", "coarse")


def sheet(split: str, count: int, domain: str) -> Tensor:
    """Pictures ``(3, H, W)`` in [0, 1]; two rows for each identity."""
    drawer, rows = Drawer(1, {}, domain), []
    for subject in tqdm(load_subjects(split, count, domain), desc="atlas", disable=None):
        for arm in ARMS:
            pictures = cached(picture_file(split, arm, {}, subject, 1), lambda arm=arm, s=subject: drawer.draw(arm, s))
            first = subject.photo if arm == ARMS[0] else torch.ones_like(subject.photo)
            rows += [first, *pictures[list(COLUMNS)]]
    return make_grid(torch.stack(rows), nrow=len(COLUMNS) + 1, padding=2, pad_value=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/atlas.png"))
    parser.add_argument("--split", choices=("held-out", "validation"), default="held-out")
    parser.add_argument("--domain", choices=tuple(WEIGHTS), default="face")
    parser.add_argument("--identities", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pixels = (sheet(options.split, options.identities, options.domain) * 255).round().byte().movedim(0, -1).numpy()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(options.out)
    print(f"{options.out}: a row with E4T and a row with the domain word for each of {options.identities} identities")


if __name__ == "__main__":
    main()
