"""How a concept's word stands in a prompt: the alias ("S*") and the canonical ``embedding:e4t/<name>``.

The stock tokenizer knows the ``embedding:`` grammar, with weights, punctuation and parentheses. So an alias is rewritten
to it, and a private copy of the tokenizer answers the lookup from memory. Both names stand for one token.
"""

from __future__ import annotations

import copy
import re
import unicodedata
from collections.abc import Mapping

from torch import Tensor

FOLDER = "e4t/"
IDENTIFIER = "embedding:"
# A character that a word goes on with. Scripts that are written without spaces do not count: a word may stand in them.
GOES_ON = r"[^\W\u2e80-\uffef]"


class AliasError(ValueError):
    """A word that cannot stand for a concept; the message says what is wrong with it."""


def check_alias(word: str) -> None:
    """Check a concept's word.

    Raises:
        AliasError: it is too short, has no letter, is a word of the prompt grammar, or holds a character of it.
    """
    advice = "choose a word such as S*, ohwx or my-cat"
    if not isinstance(word, str) or len(word) < 2:
        raise AliasError(f"The word {word!r} is too short to stand for a concept: {advice}.")
    bad = re.search(r"[\s()\[\]{}|:<>\\]", word)
    if bad:
        raise AliasError(f"The word {word!r} holds {bad.group()!r}, which prompts give another meaning: {advice}.")
    if word.startswith((",", "'")) or word.endswith((",", "'")):
        raise AliasError(f"The word {word!r} begins or ends with punctuation of a sentence: {advice}.")
    if not any(letter.isalpha() for letter in word):
        # "1.2" would take the place of weights, ".." of punctuation.
        raise AliasError(f"The word {word!r} has no letter: {advice}.")
    if word in (IDENTIFIER.rstrip(":"), FOLDER.rstrip("/")):
        raise AliasError(f"The word {word!r} is how prompts name an embedding: {advice}.")


def rewrite_aliases(text: str, aliases: Mapping[str, object]) -> str:
    """Every alias of a prompt as ``embedding:e4t/<alias>``; possessives and punctuation stay behind it.

    An alias counts as a whole word only: "S*" is in "(S*:1.3)", "S*'s" and "S*, smiling", not in "XS*" or "S*y".
    "embedding:S*" means the alias too; other embeddings stay as they are. Accents may be composed or decomposed.
    """
    if not aliases:
        return text
    forms = {unicodedata.normalize(form, alias): alias for alias in aliases for form in ("NFC", "NFD")}
    words = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    whole = rf"({words})(?!{GOES_ON}|\*)"
    pattern = rf"{IDENTIFIER}(?:{FOLDER})?{whole}|{IDENTIFIER}[^\s,]+|(?<!{GOES_ON}){whole}"

    def canonical(match: re.Match[str]) -> str:
        found = match.group(1) or match.group(2)
        if found is None:
            return match.group()
        # The stock tokenizer looks for "embedding:" behind whitespace or at the start of a (weighted) segment.
        before = text[: match.start()]
        space = "" if not before or before[-1].isspace() or re.search(r"(?<!\\)\($", before) else " "
        return f"{space}{IDENTIFIER}{FOLDER}{forms[found]}"

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
        rest = name.removeprefix(FOLDER)
        if rest == name:
            return stock_lookup(inner, name)
        if rest in words:
            return words[rest], name, ""
        # A file "my-cat" comes before the concept "my" with "-cat" behind it.
        file = stock_lookup(inner, name)
        if file[0] is not None:
            return file
        for word in sorted(words, key=len, reverse=True):
            behind = rest[len(word) :]
            if rest.startswith(word) and not re.match(rf"{GOES_ON}|\*", behind):
                return words[word], FOLDER + word, behind.strip()
        return file

    inner._try_get_embedding = look_up
    setattr(outer, tokenizer.clip, inner)
    return outer
