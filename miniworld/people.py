"""``python -m miniworld.people --out DIR``: several photos of a few held-out people, laid out as ``commands.evaluate`` takes them.

``DIR/person_01/person_01_0001.png`` and so on; what differs from photo to photo is the scene, never the person.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from .concept_photos import concept_scene
from .heldout import held_out
from .renderer import render


def draw_people(folder: Path, people: int, photos: int, seed: int = 0) -> None:
    """Draws that many photos of each of the first held-out people."""
    for number, identity in enumerate(held_out(count=people), 1):
        rng = np.random.default_rng([seed, number])
        scenes = [concept_scene(rng) for _ in range(photos)]
        name = f"person_{number:02}"
        (folder / name).mkdir(parents=True, exist_ok=True)
        for count, picture in enumerate(render([identity] * photos, scenes), 1):
            pixels = (picture * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
            Image.fromarray(pixels).save(folder / name / f"{name}_{count:04}.png")


def main() -> None:
    parser = argparse.ArgumentParser(prog="miniworld.people", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--people", type=int, default=6, metavar="N")
    parser.add_argument("--photos", type=int, default=4, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw_people(options.out, options.people, options.photos, options.seed)


if __name__ == "__main__":
    main()
