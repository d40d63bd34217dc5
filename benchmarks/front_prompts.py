"""The front benchmark's prompts: what a tuned concept may lose beside the likeness, fixed before any picture of it was drawn.

For each individual, with "{}" where the word stands:

* ``single`` (3): a style, a background, an accessory;
* ``compound`` (3): a style, an accessory and a background at once;
* ``edited`` (3): a trait of the person by another value than its own ("a photo of S*, red hair");
* ``class`` (3): the domain word in the word's place, by the concept's own MODEL;
* ``names`` (2): a name that the base knows, likewise;
* ``pair`` (2): the word, while a second concept is in the same MODEL.

Nothing that is asked for is the concept photo's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from miniworld.attributes import ACCESSORIES, BACKGROUNDS, Identity, Scene, celebrities
from miniworld.captions import compose, identity_phrase, scene_phrases

from .prompts import PHOTO

KINDS = ("single", "compound", "edited", "class", "names", "pair")
EDITED = ("hair colour", "glasses", "beard", "hair style", "eye colour", "skin")


@dataclass(frozen=True)
class Asked:
    """One picture.

    Attributes:
        kind: one of :data:`KINDS`.
        text: with "{}" where the word, or what stands for it, is.
        scene: what a right picture shows.
        edits: the edits of the scene that the text names.
        identity: whom it should show.
        trait: of ``edited``: the named attribute that the text changes.
    """

    kind: str
    text: str
    scene: Scene
    edits: tuple[str, ...]
    identity: Identity
    trait: str = ""


def asked(identity: Identity, photo: Scene, number: int) -> tuple[Asked, ...]:
    """All pictures of the individual with this number, whose concept photo shows this scene."""
    return tuple(_all(identity, photo, number))


def _all(identity: Identity, photo: Scene, number: int) -> Iterator[Asked]:
    rng = np.random.default_rng([2024, number])
    backgrounds = [b for b in rng.permutation(len(BACKGROUNDS)).tolist() if b != photo.background]
    worn = [a for a in (rng.permutation(len(ACCESSORIES) - 1) + 1).tolist() if a != photo.accessory]
    styles = (rng.permutation(3) + 1).tolist()
    plain = Scene(style=PHOTO, background=backgrounds[6])

    def scene(kind: str, who: Identity, **edits: int) -> Asked:
        shown = plain.edited(**edits)
        named = {edit: edit in edits for edit in ("accessory", "background", "zoom")}
        return Asked(kind, compose(shown.style, "{}", scene_phrases(shown, **named)), shown, tuple(edits), who)

    yield scene("single", identity, style=styles[0])
    yield scene("single", identity, background=backgrounds[0])
    yield scene("single", identity, accessory=worn[0])
    for n in range(3):
        yield scene("compound", identity, style=styles[n], accessory=worn[n % len(worn)], background=backgrounds[1 + n])
    for n in range(3):
        yield _edited(identity, plain, EDITED[(number + 2 * n) % len(EDITED)], rng)
    for n in range(3):
        yield scene("class", identity, background=backgrounds[3 + n])
    known = celebrities(identity.domain)
    for name in [sorted(known)[(7 * number + 3 * n) % len(known)] for n in range(2)]:
        made = scene("names", known[name])
        yield replace(made, text=made.text.format(name))
    yield scene("pair", identity)
    yield scene("pair", identity, background=backgrounds[0])


def _edited(identity: Identity, plain: Scene, trait: str, rng: np.random.Generator) -> Asked:
    names = list(identity.spec.named)
    # The color of hair that is not there, and hair that goes or comes, would change what can be seen of the rest.
    if trait in ("hair colour", "hair style") and identity.value("hair style") == "bald":
        trait = "skin"
    at, values = names.index(trait), identity.spec.named[trait]
    others = [v for v in range(len(values)) if v != identity.named[at] and values[v] not in ("bald", "none")]
    changed = list(identity.named)
    changed[at] = int(rng.choice(others))
    who = replace(identity, named=tuple(changed))
    return Asked("edited", compose(PHOTO, "{}", [identity_phrase(trait, who.value(trait))]), plain, (), who, trait)
