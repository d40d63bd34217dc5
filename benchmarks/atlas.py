"""``python -m benchmarks.atlas``: all 64 held-out identities on one sheet, so that nobody can pick favorites.

A row for each identity, in the order by hash (the first is the demo's): the photo, what E4T draws from it for a few of
the benchmark's prompts, and under them the same with the domain word. Pictures come from runs/quality where the quality
benchmark has drawn them; the others are drawn now.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from commands.progress import Progress

from .options import sheet_options
from .pictures import Drawing, Painter

COLUMNS = (0, 1, 2, 3, 6, 8, 9, 10)  # of the 11 prompts: one or two of each class, both compounds
ARMS = ("e4t", "coarse")


def sheet(split: str, count: int, domain: str) -> Tensor:
    """Pictures ``(3, H, W)`` in [0, 1]; two rows for each identity."""
    painter, rows = Painter(Drawing(split, domain, count, ARMS, 1, {})), []
    for subject in Progress(painter.people, desc="atlas"):
        for arm, pictures in painter.pictures(subject.number).items():
            first = subject.photo if arm == ARMS[0] else torch.ones_like(subject.photo)
            rows += [first, *pictures[list(COLUMNS)]]
    return make_grid(torch.stack(rows), nrow=len(COLUMNS) + 1, padding=2, pad_value=1.0)


def main() -> None:
    options = sheet_options(__doc__, Path("runs/atlas.png"))
    pixels = (sheet(options.split, options.identities, options.domain) * 255).round().byte().movedim(0, -1).numpy()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(options.out)
    print(f"{options.out}: a row with E4T and a row with the domain word for each of {options.identities} identities")


if __name__ == "__main__":
    main()
