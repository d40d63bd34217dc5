"""The base gate's captions, derived from validation identities by a fixed seed; their hash is committed with them.

``DIGEST`` is checked at every use, so that nobody can change captions, grammar or identities after having seen pictures
without it being seen.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from miniworld.attributes import EDITS, FACE, Identity, Scene, celebrities, identities_of, random_scene
from miniworld.captions import Caption, compose, describe

COUNT = 512
NAMES = 128
SEED = 20
DIGEST = "c6da2901f9d459c64a16561606ac029252015773eaae1edc795139a6a345aa67"


@dataclass(frozen=True)
class Asked:
    """A caption, and the picture it was made of.

    Attributes:
        told: edits and named attributes that the caption says.
    """

    text: str
    identity: Identity
    scene: Scene
    told: tuple[str, ...]


def _told(caption: Caption) -> tuple[str, ...]:
    edits = [edit for edit in EDITS if getattr(caption, edit) not in (None, "none", "portrait")]
    return (*edits, *(f"face {attribute}" for attribute, _ in caption.named))


def base_captions(count: int = COUNT) -> list[Asked]:
    """``count`` captions of validation faces (no names in them), none of them empty.

    Raises:
        ValueError: they are not the committed ones.
    """
    rng = np.random.default_rng(SEED)
    found: list[Asked] = []
    for identity in identities_of("face", "validation", 2 * COUNT):
        scene = random_scene(rng)
        caption = describe(identity, scene, rng)
        if caption.text:
            # What the caption leaves open is drawn plainly when visibility is asked for.
            plain = {edit: 0 for edit in ("accessory", "zoom") if getattr(caption, edit) is None}
            found.append(Asked(caption.text, identity, replace(scene, shift=(0.0, 0.0), **plain), _told(caption)))
        if len(found) == COUNT:
            break
    digest = hashlib.sha256("\n".join(asked.text for asked in found).encode()).hexdigest()
    if digest != DIGEST:
        raise ValueError(f"The base gate's captions changed (SHA-256 {digest}): the gate would be another one.")
    return found[:count]


def name_captions(count: int = NAMES) -> list[Asked]:
    """ "a photo of {name}" for the first names: nothing but the name says who it is."""
    known = celebrities("face")
    scene = Scene()
    return [
        Asked(compose(scene.style, name, []), known[name], scene, tuple(f"face {a}" for a in FACE.named))
        for name in FACE.names[:count]
    ]
