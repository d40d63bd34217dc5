"""Prompt templates: sentences with "{}" where the word stands. A domain brings its own; these are two sets to choose."""

from __future__ import annotations

from collections.abc import Sequence

TEMPLATE_LIMIT = 200  # characters
TEMPLATES_LIMIT = 64

NEUTRAL = (
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a photograph of {}",
    "a close-up photo of {}",
    "a good photo of {}",
    "a rendering of {}",
    "a depiction of {}",
)
STYLE = (
    "a painting in the style of {}",
    "a picture in the style of {}",
    "a drawing in the style of {}",
    "an artwork in the style of {}",
    "a rendering in the style of {}",
    "an illustration in the style of {}",
    "a close-up painting in the style of {}",
    "a good painting in the style of {}",
)
SETS: dict[str, tuple[str, ...]] = {"neutral": NEUTRAL, "style": STYLE}


def templates_of(entries: Sequence[str]) -> tuple[str, ...]:
    """Templates, where an entry may also be the name of a set ("neutral", "style"), which stands for all of it.

    Raises:
        ValueError: an entry is neither, or there are too many or none.
    """
    found: list[str] = []
    for entry in entries:
        if "{" not in entry and entry not in SETS:
            raise ValueError(
                f"Template {entry[:TEMPLATE_LIMIT]!r} must be one of {', '.join(SETS)}, or a sentence with {{}} where the"
                " word stands."
            )
        found += SETS.get(entry, (entry,))
    check_templates(found)
    return tuple(found)


def check_templates(templates: Sequence[str]) -> None:
    """Check that there are 1 to 64 templates, each of at most 200 characters and with "{}" once.

    Raises:
        ValueError: the first that is not so.
    """
    if not 1 <= len(templates) <= TEMPLATES_LIMIT:
        raise ValueError(f"There are {len(templates)} prompt templates: there must be 1 to {TEMPLATES_LIMIT}.")
    for template in templates:
        if (
            len(template) > TEMPLATE_LIMIT
            or template.count("{}") != 1
            or template.count("{") + template.count("}") != 2
        ):
            raise ValueError(
                f"Template {template[:TEMPLATE_LIMIT]!r} must have at most {TEMPLATE_LIMIT} characters, and {{}} once, where"
                " the word stands."
            )
