"""Photos that the mini world's domains are trained on: who is in them, in what scene, and where the subject is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from .attributes import Identity, Scene, random_identity, random_scene
from .renderer import render

CONCEPTS, CONCEPT_SEED = 4096, 11  # training identities, one photo each, and the seed they are drawn from
CHUNK = 64
STYLE_PHOTO, ZOOM_PORTRAIT = 0, 0


def concept_scene(rng: np.random.Generator) -> Scene:
    """Concept pictures are photos in portrait; half of them with an accessory."""
    accessory = int(rng.integers(1, 5)) if rng.random() < 0.5 else 0
    return random_scene(rng, style=STYLE_PHOTO, zoom=ZOOM_PORTRAIT, accessory=accessory)


def training_identities(domain: str, chunk: int, rng: np.random.Generator | None = None) -> list[Identity]:
    """The ``CHUNK`` individuals of one chunk of the training concepts."""
    rng = rng or np.random.default_rng([CONCEPT_SEED, chunk])
    return [random_identity(rng, domain, "train") for _ in range(CHUNK)]


def subject_masks(identities: Sequence[Identity], scenes: Sequence[Scene], pictures: Tensor) -> Tensor:
    """Where the subject is ``(B, 1, 128, 128)`` in {0, 1}: neither background nor accessory.

    With it the loss does not reward a word for telling the background, which no template mentions.
    """
    elsewhere = [replace(scene, background=(scene.background + 4) % 8) for scene in scenes]
    bare = [replace(scene, accessory=0) for scene in scenes]
    background = (render(identities, elsewhere) - pictures).abs().amax(1, keepdim=True) > 0.02
    accessory = (render(identities, bare) - pictures).abs().amax(1, keepdim=True) > 0.02
    return (~background & ~accessory).float()
