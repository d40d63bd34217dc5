"""What a concept is called in prompts: its trigger ("S*")."""

from __future__ import annotations

import re

FOLDER = "e4t/"
"""Concepts stand there among a prompt's embeddings, as ``embedding:e4t/<name>``."""
IDENTIFIER = "embedding:"


class TriggerError(ValueError):
    """A trigger that cannot stand for a concept; the message says what is wrong with it."""


def check_trigger(trigger: str) -> None:
    """Check a concept's trigger.

    Raises:
        TriggerError: it is too short, has no letter, is a word of the prompt grammar, or holds a character of it.
    """
    advice = "choose a word such as S*, ohwx or my-cat"
    if not isinstance(trigger, str) or len(trigger) < 2:
        raise TriggerError(f"The trigger {trigger!r} is too short to stand for a concept: {advice}.")
    bad = re.search(r"[\s()\[\]{}|:<>\\]", trigger)
    if bad:
        raise TriggerError(
            f"The trigger {trigger!r} holds {bad.group()!r}, which prompts give another meaning: {advice}."
        )
    if trigger.startswith((",", "'")) or trigger.endswith((",", "'")):
        raise TriggerError(f"The trigger {trigger!r} begins or ends with punctuation of a sentence: {advice}.")
    if not any(letter.isalpha() for letter in trigger):
        # "1.2" would take the place of weights, ".." of punctuation.
        raise TriggerError(f"The trigger {trigger!r} has no letter: {advice}.")
    if trigger in (IDENTIFIER.rstrip(":"), FOLDER.rstrip("/")):
        raise TriggerError(f"The trigger {trigger!r} is how prompts name an embedding: {advice}.")
