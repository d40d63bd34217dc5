"""How a concept's word stands in a prompt: the alias ("S*") and the canonical ``embedding:e4t/<name>``.

The stock tokenizer knows the ``embedding:`` grammar, with weights, punctuation and parentheses. So an alias is rewritten
to it, and a private copy of the tokenizer answers the lookup from memory. Both names stand for one token.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

from torch import Tensor

FOLDER = "e4t/"
IDENTIFIER = "embedding:"


class AliasError(ValueError):
    """A word that cannot stand for a concept; the message says what is wrong with it."""


def check_alias(word: str) -> None:
    """Check a concept's word.

    Raises:
        AliasError: it is empty, one letter, or holds whitespace, parentheses, a colon, < or >.
    """
    advice = "choose a word such as S*, ohwx or my-cat"
    if not isinstance(word, str) or len(word) < 2:
        raise AliasError(f"The word {word!r} is too short to stand for a concept: {advice}.")
    bad = re.search(r"[\s()\[\]:<>\\]", word)
    if bad:
        raise AliasError(f"The word {word!r} holds {bad.group()!r}, which prompts give another meaning: {advice}.")
    if word.startswith((",", "'")) or word.endswith((",", "'")):
        raise AliasError(f"The word {word!r} begins or ends with punctuation of a sentence: {advice}.")


def rewrite_aliases(text: str, aliases: Mapping[str, object]) -> str:
    """Every alias of a prompt as ``embedding:e4t/<alias>``; possessives and punctuation stay behind it.

    An alias counts as a whole word only: "S*" is in "(S*:1.3)", "S*'s" and "S*, smiling", not in "XS*" or "S*y".
    """
    if not aliases:
        return text
    longest_first = sorted(aliases, key=len, reverse=True)
    words = "|".join(re.escape(alias) for alias in longest_first)
    pattern = rf"(?<!{re.escape(IDENTIFIER + FOLDER)})(?<!\w)({words})(?![\w*])"

    def canonical(match: re.Match[str]) -> str:
        # The stock tokenizer looks for "embedding:" behind whitespace or at the start of a (weighted) segment.
        before = text[: match.start()]
        space = "" if not before or before[-1].isspace() or re.search(r"(?<!\\)\($", before) else " "
        return f"{space}{IDENTIFIER}{FOLDER}{match.group(1)}"

    return re.sub(pattern, canonical, text)


def tokenizer_with_words(tokenizer: object, words: Mapping[str, Tensor]) -> object:
    """A private copy of a CLIP's tokenizer whose ``embedding:e4t/<name>`` finds these vectors ``(D,)``.

    Args:
        tokenizer: a ComfyUI tokenizer for one text encoder (SD 1.x, SD 2.x); it stays as it is.
        words: name -> static embedding; the tensor itself becomes the token.
    """
    outer = copy.copy(tokenizer)
    inner = copy.copy(getattr(tokenizer, tokenizer.clip))
    stock_lookup = type(inner)._try_get_embedding
    if inner.embedding_directory is None:
        inner.embedding_directory = []

    def look_up(name: str) -> tuple[Tensor | None, str, str]:
        if name.startswith(FOLDER):
            rest = name[len(FOLDER) :]
            for word in sorted(words, key=len, reverse=True):
                behind = rest[len(word) :]
                if rest.startswith(word) and not re.match(r"[\w*]", behind):
                    return words[word], FOLDER + word, behind.strip()
        return stock_lookup(inner, name)

    inner._try_get_embedding = look_up
    setattr(outer, tokenizer.clip, inner)
    return outer
