"""A trigger that is an everyday word is allowed, and said: from then on the word means the photo wherever it is written."""

from __future__ import annotations

import comfy.sd

# CLIP's vocabulary is ordered by how common a piece of text was. "of" is number 539, "face" 1,710, "kitten" 13,063; "ohwx"
# and "sks", which people choose because they are rare, come near 48,000.
COMMON = 40_000
WORD_END = "</w>"


def about_trigger(clip: comfy.sd.CLIP, trigger: str) -> list[str]:
    """A note if a trigger is a common word of the text encoder's vocabulary, as ONE token.

    Args:
        clip: whose tokenizer reads the prompts.
        trigger: as typed; its case counts in prompts, though the vocabulary has lower case only.
    """
    tokenizer = getattr(clip.tokenizer, clip.tokenizer.clip)
    number = tokenizer.tokenizer.get_vocab().get(trigger.lower() + WORD_END)
    if number is None or number >= COMMON:
        return []
    note = (
        f"{trigger!r} is an everyday word: from now on it stands for the photo wherever it is written just so (capitals"
        " count) in a prompt of this CLIP. Choose a word such as S* or ohwx if that is not meant."
    )
    return [note]
