"""Photos that are no portraits: individuals off center, small, among things and beside others, each drawn from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from e4t_core.crop import Square, square_at
from miniworld.attributes import BACKGROUNDS, Identity
from miniworld.heldout import concept_photo
from miniworld.renderer import HEAD, SIZE, Placed, Thing, render_picture

LONG, SHORT = 512, 384  # sides of a photo in pixels
LARGER = 1.25  # how many times as large as the others the one who is meant is, at least
NOBODY = "nobody"


@dataclass(frozen=True)
class Kind:
    """Attributes:
    width, height: of the photo.
    people: how many.
    sides: of a portrait of the largest, as shares of the photo's shorter side: least and most.
    things: how many, in the background.
    """

    width: int
    height: int
    people: int = 1
    sides: tuple[float, float] = (0.55, 0.95)
    things: int = 0


KINDS = {
    "4:3": Kind(LONG, SHORT),
    "3:4": Kind(SHORT, LONG),
    "small": Kind(LONG, SHORT, sides=(0.38, 0.5)),
    "things": Kind(LONG, SHORT, things=3),
    "two": Kind(LONG, SHORT, people=2, sides=(0.55, 0.7)),
    "three": Kind(LONG, SHORT, people=3, sides=(0.48, 0.55)),
    NOBODY: Kind(LONG, SHORT, people=0, things=4),
}


@dataclass(frozen=True)
class Photographed:
    """A photo and who is in it.

    Attributes:
        photo: ``(3, H, W)``.
        people: the one who is meant first.
    """

    photo: Tensor
    people: tuple[Placed, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.photo.shape[-2], self.photo.shape[-1]

    def portrait(self, number: int = 0) -> Square:
        """The square that is one individual's portrait."""
        person = self.people[number]
        middle = person.top + person.side / 2, person.left + person.side / 2
        return square_at(self.size, middle, person.side)

    def head_inside(self, square: Square) -> float:
        """Which share of the head of who is meant lies in a square; of the box around the face."""
        person = self.people[0]
        scale = person.side / SIZE
        y, x = person.top + (SIZE / 2 + 5) * scale, person.left + SIZE / 2 * scale
        half_height, half_width = HEAD * scale, 0.8 * HEAD * scale
        rows = min(y + half_height, square.top + square.side) - max(y - half_height, square.top)
        columns = min(x + half_width, square.left + square.side) - max(x - half_width, square.left)
        return max(0.0, rows) * max(0.0, columns) / (4 * half_height * half_width)


def photograph(identities: Sequence[Identity], kind: str) -> Photographed:
    """The photo of a kind, of the first individual as its concept photo shows it; the others stand beside.

    Places are drawn again until no two heads meet.

    Args:
        identities: as many as the kind has people, or more.
        kind: one of ``KINDS``.
    """
    about = KINDS[kind]
    digest = hashlib.sha256(identities[0].order() + kind.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    scene = concept_photo(identities[0])[0]
    shorter = min(about.width, about.height)
    largest = float(rng.uniform(*about.sides)) * shorter
    while True:
        people = []
        for number in range(about.people):
            side = largest if number == 0 else float(rng.uniform(0.6, 1.0)) * largest / LARGER
            left, top = (float(rng.uniform(0, length - side)) for length in (about.width, about.height))
            worn = scene.accessory if number == 0 else concept_photo(identities[number])[0].accessory
            people.append(Placed(identities[number], left, top, side, worn))
        pairs = [(a, b) for a in people for b in people if a is not b]
        # Whoever stands in front hides others' bodies, not their heads.
        if all(abs(a.left + a.side / 2 - b.left - b.side / 2) > 0.5 * (a.side + b.side) * 0.8 for a, b in pairs):
            break
    things = []
    for _ in range(about.things):
        left, top = (float(rng.uniform(0, 0.8 * length)) for length in (about.width, about.height))
        width, height = (float(rng.uniform(0.1, 0.45)) * shorter for _ in range(2))
        color = (scene.background + int(rng.integers(1, len(BACKGROUNDS)))) % len(BACKGROUNDS)
        things.append(Thing(left, top, width, height, color))
    photo = render_picture(about.width, about.height, scene.background, people[::-1], things)
    return Photographed(photo, tuple(people))
