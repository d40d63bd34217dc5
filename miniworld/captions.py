"""What a caption of the mini world says, and how: the grammar that the base model understands.

``{style} of {word}[, identity parts][, accessory][, background][, zoom]``, for example
"a pencil sketch of emma, red hair, curly hair, wearing a hat, blue background, closeup".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .attributes import DOMAINS, STYLES, Identity, Scene, celebrities

STYLE_PHRASES = {
    "photo": "a photo of",
    "pencil sketch": "a pencil sketch of",
    "pixel art": "a pixel art of",
    "watercolor": "a watercolor of",
}
EMPTY_SHARE = 0.1
SYNONYM_SHARE = 0.1


def identity_phrase(attribute: str, value: str) -> str:
    if attribute == "skin":
        return f"{value} skin"
    if attribute == "hair colour":
        return f"{value} hair"
    if attribute == "hair style":
        return "bald" if value == "bald" else "mohawk" if value == "mohawk" else f"{value} hair"
    if attribute == "eye colour":
        return f"{value} eyes"
    if attribute == "glasses":
        return "no glasses" if value == "none" else f"{value} glasses"
    if attribute == "beard":
        return "no beard" if value == "none" else value
    if attribute == "fur":
        return f"{value} fur"
    return f"{value} pattern"


def scene_phrases(scene: Scene, accessory: bool = True, background: bool = True, zoom: bool = True) -> list[str]:
    """The parts of a caption that follow the subject."""
    parts = []
    if accessory and scene.value("accessory") != "none":
        worn = scene.value("accessory")
        parts.append(f"wearing {worn}" if worn == "headphones" else f"wearing a {worn}")
    if background:
        parts.append(f"{scene.value('background')} background")
    if zoom and scene.value("zoom") != "portrait":
        parts.append(scene.value("zoom"))
    return parts


def subject_phrases(identity: Identity) -> list[str]:
    """Every named attribute in words: the oracle's way to describe a person."""
    return [identity_phrase(attribute, identity.value(attribute)) for attribute in identity.spec.named]


def compose(style: int, word: str, phrases: list[str]) -> str:
    return ", ".join([f"{STYLE_PHRASES[STYLES[style]]} {word}", *phrases])


@dataclass(frozen=True)
class Caption:
    """A caption and what of the picture it tells.

    Attributes:
        named: attribute -> value for what was said in words.
        name: the celebrity's name where it stands in the domain word's place.
    """

    text: str
    domain: str | None = None
    named: tuple[tuple[str, str], ...] = ()
    name: str | None = None
    style: str | None = None
    accessory: str | None = None
    background: str | None = None
    zoom: str | None = None


def describe(identity: Identity, scene: Scene, rng: np.random.Generator) -> Caption:
    """Draws one of the many captions of a picture; one in ten is empty, for classifier-free guidance."""
    if rng.random() < EMPTY_SHARE:
        return Caption("")
    spec = identity.spec
    name = next((n for n, known in celebrities(identity.domain).items() if known == identity), None)
    if name is not None and rng.random() > 0.1:
        word = name
    else:
        name = None
        word = str(rng.choice(spec.synonyms)) if rng.random() < SYNONYM_SHARE else spec.word
    # A name says who it is: saying the parts as well, as often as for strangers, would let the model ignore the name.
    chance = 0.12 if name else 0.5
    said = [a for a in spec.named if rng.random() < chance]
    if identity.domain == "face" and identity.value("hair style") == "bald" and identity.value("beard") == "none":
        said = [a for a in said if a != "hair colour"]
    shown = {part: bool(rng.random() < p) for part, p in (("accessory", 0.9), ("background", 0.8), ("zoom", 0.95))}
    phrases = [identity_phrase(a, identity.value(a)) for a in said] + scene_phrases(scene, **shown)
    article = "a " if name is None and rng.random() < 0.3 else ""
    return Caption(
        text=compose(scene.style, article + word, phrases),
        domain=identity.domain,
        named=tuple((a, identity.value(a)) for a in said),
        name=name,
        style=scene.value("style"),
        accessory=scene.value("accessory") if shown["accessory"] else None,
        background=scene.value("background") if shown["background"] else None,
        zoom=scene.value("zoom") if shown["zoom"] else None,
    )


def vocabulary() -> list[str]:
    """Captions that together hold every word of this world."""
    texts = [*STYLE_PHRASES.values(), "wearing a hat", "no glasses", "no beard", "bald", "mohawk", "closeup", "afar"]
    for spec in DOMAINS.values():
        texts += [spec.word, *spec.synonyms, *spec.names]
        texts += [identity_phrase(a, v) for a, values in spec.named.items() for v in values]
    for accessory in range(5):
        for background in range(8):
            texts += scene_phrases(Scene(accessory=accessory, background=background))
    return sorted(set(texts))
