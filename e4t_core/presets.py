"""Prompt templates, as data."""

from __future__ import annotations

TEMPLATES: dict[str, tuple[str, ...]] = {
    "neutral": (
        "a photo of {}",
        "a picture of {}",
        "an image of {}",
        "a photograph of {}",
        "a close-up photo of {}",
        "a good photo of {}",
        "a rendering of {}",
        "a depiction of {}",
    ),
    "style": (
        "a painting in the style of {}",
        "a picture in the style of {}",
        "a drawing in the style of {}",
        "an artwork in the style of {}",
        "a rendering in the style of {}",
        "an illustration in the style of {}",
        "a close-up painting in the style of {}",
        "a good painting in the style of {}",
    ),
    # The mini world's captions begin "a {style} of {word}"; its concept photos are in the photo style.
    "mini": ("a photo of {}",),
}


def templates_of(name: str) -> tuple[str, ...]:
    """The prompt templates of a set; each holds "{}" once.

    Raises:
        ValueError: no such set; the message lists the sets there are.
    """
    if name not in TEMPLATES:
        raise ValueError(f"Template set {name!r} is unknown: it must be one of {', '.join(sorted(TEMPLATES))}.")
    return TEMPLATES[name]
