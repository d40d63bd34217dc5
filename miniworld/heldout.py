"""The benchmark's 64 held-out people and the one photo of each; the first by hash is the demo's."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .attributes import Identity, Scene, identities_of
from .concept_photos import concept_scene
from .renderer import render

COUNT = 64


def concept_photo(identity: Identity) -> tuple[Scene, Tensor]:
    """The scene, drawn from the identity's own hash, and the photo ``(3, 128, 128)`` in [0, 1]."""
    rng = np.random.default_rng(int.from_bytes(identity.order()[:8], "big"))
    scene = concept_scene(rng)
    return scene, render([identity], [scene])[0]


def held_out(domain: str = "face", split: str = "held-out", count: int = COUNT) -> tuple[Identity, ...]:
    """Identities of a split, ordered by hash, so that nobody can pick a favorite."""
    return identities_of(domain, split, count)
