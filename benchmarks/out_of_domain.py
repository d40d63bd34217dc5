"""The paper's figure 8 on the mini world: what the face domain makes of photos that show no face.

Near to its domain lie cats, which the base model knows; far from it toys of blocks, which nothing here was trained on. The judges do
not know toys either, so that their likeness says little there; the distance of small pictures asks no network.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from commands.progress import Progress
from miniworld.heldout import concept_photo, held_out
from miniworld.models import load_judges
from miniworld.renderer import SIZE

from . import host
from .ablation_arms import ARMS, FULL
from .ablation_domains import Unfinished
from .ablation_pictures import DOMAIN, Painter
from .arms import SAMPLING, WORD, personalize
from .photo_fit import Judge
from .picture_cache import cached, that_count
from .picture_sheet import sheet
from .prompts import seed_of
from .report import table

FOLDER = host.ROOT / "runs" / "out_of_domain"
PROMPTS = {
    "plain": "a photo of {}",
    "blue background": "a photo of {}, blue background",
    "pencil sketch": "a pencil sketch of {}",
    "watercolor, hat": "a watercolor of {}, wearing a hat",
}
"""A column's title -> the prompt; a title is no longer than a picture is wide."""
WOOD = ("#c8964f", "#a8703a", "#d8b070", "#8c5a2c")
PAINT = ("#b03a2e", "#1f618d", "#239b56", "#d4ac0d", "#6c3483")
CELLS = 16  # side of the small pictures


def toy(number: int) -> Tensor:
    """A wagon of wooden blocks on a plain ground, ``(3, 128, 128)`` in [0, 1]."""
    rng = np.random.default_rng([8, number])

    def one_of(colors: Sequence[str]) -> str:
        return colors[int(rng.integers(len(colors)))]

    image = Image.new("RGB", (SIZE, SIZE), ("#e8e4da", "#cfd8dc", "#f0e0c0", "#d8e8d0")[number % 4])
    draw = ImageDraw.Draw(image)
    low, left, right = 92, int(rng.integers(14, 26)), int(rng.integers(102, 114))
    draw.rectangle((left, low - 16, right, low), one_of(WOOD), "#5d4037", 2)
    place = left + 4
    while place < right - 16:
        width, height = int(rng.integers(14, 28)), int(rng.integers(14, 48))
        color = one_of(PAINT if rng.random() < 0.6 else WOOD)
        top = low - 16 - height
        draw.rectangle((place, top, min(place + width, right), low - 16), color, "#5d4037", 2)
        if rng.random() < 0.5:
            draw.polygon([(place, top), (place + width // 2, top - 14), (place + width, top)], one_of(PAINT), "#5d4037")
        place += width + 3
    wheels, radius = int(rng.integers(2, 5)), int(rng.integers(8, 13))
    for number_of in range(wheels):
        x = left + radius + (right - left - 2 * radius) * number_of / (wheels - 1)
        draw.ellipse((x - radius, low - 2, x + radius, low - 2 + 2 * radius), one_of(PAINT), "#3e2723", 2)
    return torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255


def photos(split: str, count: int) -> dict[str, list[Tensor]]:
    """Kind of thing -> photos of it."""
    return {
        "face (its domain)": [concept_photo(one)[1] for one in held_out(DOMAIN, split, count)],
        "cat (near)": [concept_photo(one)[1] for one in held_out("cat", split, count)],
        "toy (far)": [toy(number) for number in range(count)],
    }


def drawn(painter: Painter, photo: Tensor, number: int) -> Tensor:
    """The prompts' pictures of one photo, ``(prompts, 3, 128, 128)``, from their file or now.

    Raises:
        Unfinished: there is no time left.
    """
    drawer = painter.drawer(ARMS[FULL])
    decides = json.dumps([
        host.weights_fingerprint("base", "text", "vae", "backbone", "faces"), that_count(drawer.settings()), asdict(SAMPLING),
        PROMPTS, number,
    ])  # fmt: skip
    key = hashlib.sha256(decides.encode() + photo.numpy().tobytes()).hexdigest()[:16]
    path = FOLDER / f"{key}.safetensors"
    if not path.exists() and time.monotonic() > painter.until:
        raise Unfinished("Not all photos are learned: the same command goes on.")

    def draw() -> Tensor:
        tuned = personalize(drawer.base, drawer.domain(DOMAIN), photo, None, drawer.settings())
        return torch.cat([
            host.draw(tuned, [text.format(WORD)], [seed_of(number, place, 8)], SAMPLING)
            for place, text in enumerate(PROMPTS.values())
        ])  # fmt: skip

    return cached(path, draw)


def small(pictures: Tensor) -> Tensor:
    """``(B, 3, 16, 16)``."""
    return F.interpolate(pictures, size=(CELLS, CELLS), mode="bilinear", antialias=True)


def own_and_others(measured: Tensor) -> tuple[float, float]:
    """Means of a square table ``(n, n)`` (picture of one, photo of another): on its diagonal, and beside it."""
    own = torch.eye(len(measured), dtype=torch.bool)
    return float(measured[own].mean()), float(measured[~own].mean())


def out_of_domain(painter: Painter, out: Path) -> None:
    """The sheet; and for each kind how well the domain explains the photos, and how near pictures are to their own photo and to others."""
    kinds = photos(painter.split, len(painter.people))
    made = {
        kind: [drawn(painter, photo, number) for number, photo in enumerate(Progress(given, desc=kind))]
        for kind, given in kinds.items()
    }
    knows, judges = Judge(DOMAIN), load_judges()
    rows = []
    for kind, given in kinds.items():
        plain, shown = torch.stack([pictures[0] for pictures in made[kind]]), torch.stack(given)
        apart = (small(plain)[:, None] - small(shown)[None]).abs().mean(dim=(2, 3, 4)) * 255
        values = [own_and_others(apart)]
        for judge in judges.values():
            one, other = judge.read(plain).identity, judge.read(shown).identity
            values.append(own_and_others(one @ other.T))
        gain = float(np.mean([knows.gain(photo) for photo in given]))
        distance, *likeness = values
        rows.append((
            kind, f"{gain:.2f}", f"{distance[0]:.0f} and {distance[1]:.0f}", *(f"{own:.2f} and {rest:.2f}" for own, rest in likeness),
        ))  # fmt: skip
    header = ("photos", "gain", "levels from own and other photos", *(f"likeness, {name}" for name in judges))
    print(table(header, rows))
    pictures = [[photo, *made[kind][number]] for kind, given in kinds.items() for number, photo in enumerate(given)]
    titles = [kind for kind, given in kinds.items() for _ in given]
    sheet(pictures, ["the photo", *PROMPTS], titles, out)
    print(f"\n{out}: {len(painter.people)} photos of each kind, learned with the face domain")
