"""Everything that can be known of a picture of the mini world: domains, identities, edits, and the three splits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from .names import CAT_NAMES, FACE_NAMES

SPLITS = ("train", "validation", "held-out")
MARK_KINDS = ("none", "mole", "scar", "red paint", "blue paint", "yellow paint")
STREAK_KINDS = ("none", "white streak", "purple streak", "orange streak")

STYLES = ("photo", "pencil sketch", "pixel art", "watercolor")
BACKGROUNDS = ("red", "orange", "yellow", "green", "blue", "purple", "gray", "white")
ACCESSORIES = ("none", "hat", "crown", "headphones", "scarf")
ZOOMS = ("portrait", "closeup", "afar")
EDITS: dict[str, tuple[str, ...]] = {
    "style": STYLES,
    "background": BACKGROUNDS,
    "accessory": ACCESSORIES,
    "zoom": ZOOMS,
}


@dataclass(frozen=True)
class DomainSpec:
    """One kind of subject.

    Attributes:
        word: the domain's coarse descriptor, one token.
        synonyms: other words that captions use for it.
        names: words bound to fixed training identities.
        named: attribute -> its values; captions may say them.
        geometry: unnamed continuous attributes in [0, 1]; captions never say them.
        marks: place -> kinds of mark; captions never say them.
        share: this domain's part of the base model's training pictures.
    """

    word: str
    synonyms: tuple[str, ...]
    names: tuple[str, ...]
    named: dict[str, tuple[str, ...]]
    geometry: tuple[str, ...]
    marks: dict[str, tuple[str, ...]]
    share: float


FACE = DomainSpec(
    word="face",
    synonyms=("person", "man", "woman", "human"),
    names=FACE_NAMES,
    named={
        "skin": ("pale", "rosy", "golden", "brown", "dark", "green"),
        "hair colour": ("black", "brown", "blond", "red", "white", "blue", "green", "pink"),
        "hair style": ("bald", "short", "long", "curly", "mohawk"),
        "eye colour": ("black", "blue", "green", "amber", "violet"),
        "glasses": ("none", "round", "square"),
        "beard": ("none", "beard", "moustache"),
    },
    geometry=(
        "face width",
        "jaw",
        "eye spacing",
        "eye height",
        "eye size",
        "nose length",
        "mouth width",
        "mouth height",
    ),
    marks={
        "forehead": MARK_KINDS,
        "left cheek": MARK_KINDS,
        "right cheek": MARK_KINDS,
        "chin": MARK_KINDS,
        "hair": STREAK_KINDS,
    },
    share=0.8,
)
CAT = DomainSpec(
    word="cat",
    synonyms=("kitten", "feline", "pet", "animal"),
    names=CAT_NAMES,
    named={
        "fur": ("black", "gray", "white", "orange", "brown", "cream", "blue", "pink"),
        "pattern": ("plain", "striped", "patch", "masked"),
        "eye colour": ("black", "blue", "green", "amber", "violet"),
    },
    geometry=("face width", "ear size", "ear spacing", "eye spacing", "eye size", "muzzle size"),
    marks={
        "forehead": MARK_KINDS,
        "left cheek": MARK_KINDS,
        "right cheek": MARK_KINDS,
        "left ear": STREAK_KINDS,
        "right ear": STREAK_KINDS,
    },
    share=0.2,
)
DOMAINS: dict[str, DomainSpec] = {"face": FACE, "cat": CAT}


@dataclass(frozen=True)
class Identity:
    """Who is in the picture: indices into ``DomainSpec.named`` and ``.marks``, geometry in [0, 1]."""

    domain: str
    named: tuple[int, ...]
    geometry: tuple[float, ...]
    marks: tuple[int, ...]

    @property
    def spec(self) -> DomainSpec:
        return DOMAINS[self.domain]

    def value(self, attribute: str) -> str:
        spec = self.spec
        return spec.named[attribute][self.named[list(spec.named).index(attribute)]]

    def canonical(self) -> tuple[str, ...]:
        """What of the named attributes and marks can be seen in a plain portrait: the key of the splits."""
        spec = self.spec
        values = {name: spec.named[name][i] for name, i in zip(spec.named, self.named, strict=True)}
        if self.domain == "face" and values["hair style"] == "bald" and values["beard"] == "none":
            values["hair colour"] = "-"
        marks = {place: spec.marks[place][i] for place, i in zip(spec.marks, self.marks, strict=True)}
        return (self.domain, *values.values(), *marks.values())

    def split(self) -> str:
        """90 % train, 4 % validation, 6 % held-out, by a hash that no random seed can move."""
        bucket = int.from_bytes(hashlib.sha256("|".join(self.canonical()).encode()).digest()[:8], "big") % 100
        return "train" if bucket < 90 else "validation" if bucket < 94 else "held-out"

    def order(self) -> bytes:
        """Sorts identities reproducibly without favoring any."""
        text = repr((self.canonical(), tuple(round(g, 4) for g in self.geometry)))
        return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True)
class Scene:
    """Everything else in the picture: indices into ``EDITS``, and the subject's shift in pixels."""

    style: int = 0
    background: int = 0
    accessory: int = 0
    zoom: int = 0
    shift: tuple[float, float] = (0.0, 0.0)

    def value(self, edit: str) -> str:
        return EDITS[edit][getattr(self, edit)]

    def edited(self, **edits: int) -> Scene:
        """The same scene with other values of some of ``EDITS``, by name."""
        changes: dict[str, Any] = {**edits}
        return replace(self, **changes)


def random_identity(rng: np.random.Generator, domain: str, split: str | None = None) -> Identity:
    """Draws an identity, of one split when one is named."""
    spec = DOMAINS[domain]
    while True:
        named = tuple(int(rng.integers(len(values))) for values in spec.named.values())
        marks = [0] * len(spec.marks)
        kinds = list(spec.marks.values())
        for place in rng.choice(len(marks), size=int(rng.integers(2, 5)), replace=False):
            marks[place] = int(rng.integers(1, len(kinds[place])))
        if domain == "face" and spec.named["hair style"][named[2]] == "bald":
            marks[list(spec.marks).index("hair")] = 0  # there is no hair to wear a streak in
        geometry = tuple(float(g) for g in rng.random(len(spec.geometry)))
        identity = Identity(domain, named, geometry, tuple(marks))
        if split is None or identity.split() == split:
            return identity


def random_scene(rng: np.random.Generator, **fixed: int) -> Scene:
    """Draws a scene; half of all pictures are photos, half have no accessory, half are portraits."""
    drawn = {
        "style": int(rng.choice(4, p=(0.4, 0.2, 0.2, 0.2))),
        "background": int(rng.integers(len(BACKGROUNDS))),
        "accessory": int(rng.choice(5, p=(0.4, 0.15, 0.15, 0.15, 0.15))),
        "zoom": int(rng.choice(3, p=(0.6, 0.2, 0.2))),
    }
    drawn.update(fixed)
    shift = (float(rng.uniform(-3, 3)), float(rng.uniform(-3, 3)))
    return Scene(**drawn, shift=shift)


@cache
def celebrities(domain: str) -> dict[str, Identity]:
    """The identity that each name of the domain is bound to: always of the training split, always the same."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"names of {domain}".encode()).digest()[:8], "big"))
    return {name: random_identity(rng, domain, "train") for name in DOMAINS[domain].names}


@cache
def identities_of(domain: str, split: str, count: int) -> tuple[Identity, ...]:
    """The first ``count`` identities of a split, drawn from a fixed seed and ordered by hash."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{domain} {split}".encode()).digest()[:8], "big"))
    pool = [random_identity(rng, domain, split) for _ in range(max(count, 64))]
    return tuple(sorted(pool, key=Identity.order)[:count])
