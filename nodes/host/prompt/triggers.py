"""How a concept stands in a prompt: its trigger ("S*") and the canonical ``embedding:e4t/<trigger>``.

The stock tokenizer knows the ``embedding:`` grammar, with weights, punctuation and parentheses. So a trigger is rewritten
to it, and a private copy of the tokenizer answers the lookup from memory. A person's own embedding files come first
everywhere but in ``e4t/``: a trigger "anna" never takes ``embedding:anna-v2`` from a file of that name.
"""

from __future__ import annotations

import copy
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from ....e4t_core.trigger import FOLDER, IDENTIFIER

# A character that a word goes on with. Scripts that are written without spaces do not count: a word may stand in them.
GOES_ON = r"[^\W\u2e80-\uffef]"
# What ends an embedding's name for the stock tokenizer, or a weight behind it.
NAME_ENDS = re.compile(r"[\s()<\[:]")
EXTENSIONS = ("", ".safetensors", ".pt", ".bin")


def rewrite_triggers(
    text: str, triggers: Iterable[str], is_file: Callable[[str], bool] = lambda name: False
) -> tuple[str, frozenset[str]]:
    """A prompt with every trigger as ``embedding:e4t/<trigger>``, and the triggers that were found in it.

    A trigger counts as a whole word only: "S*" is in "(S*:1.3)", "S*'s" and "S*, smiling", not in "XS*" or "S*y".
    "embedding:S*" means the trigger too; other embeddings stay as they are. Accents may be composed or decomposed.

    Args:
        text: a prompt.
        triggers: of the concepts; the longest one that fits counts.
        is_file: whether a name is one of the person's embedding files, which come first.
    """
    forms = {unicodedata.normalize(form, trigger): trigger for trigger in triggers for form in ("NFC", "NFD")}
    if not forms:
        return text, frozenset()
    words = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    whole = rf"({words})(?!{GOES_ON}|\*)"
    pattern = re.compile(rf"{IDENTIFIER}({FOLDER})?{whole}|{IDENTIFIER}[^\s,]+|(?<!{GOES_ON}){whole}")
    found: set[str] = set()
    pieces: list[str] = []
    position = 0
    while match := pattern.search(text, position):
        pieces.append(text[position : match.start()])
        position = match.end()
        folder, named, bare = match.groups()
        form = named or bare
        if form is None or (not folder and (end := _end_of_file(text, match.end(), form, bool(named), is_file))):
            # All of a file's name stays: behind the trigger it may hold the trigger once more.
            position = position if form is None else max(position, end)
            pieces.append(text[match.start() : position])
            continue
        found.add(forms[form])
        # The stock tokenizer looks for "embedding:" behind whitespace or at the start of a (weighted) segment.
        before = text[: match.start()]
        space = "" if not before or before[-1].isspace() or re.search(r"(?<!\\)\($", before) else " "
        pieces.append(f"{space}{IDENTIFIER}{FOLDER}{forms[form]}")
    return "".join([*pieces, text[position:]]), frozenset(found)


def _end_of_file(text: str, position: int, trigger: str, named: bool, is_file: Callable[[str], bool]) -> int:
    """Where the file's name ends that a trigger is a part of, or 0: "anna" in "anna-v2" if ``anna-v2.safetensors`` exists.

    Args:
        text: a prompt.
        position: just behind the trigger.
        named: whether "embedding:" stands before it; a file of just the trigger's name then counts, too.
    """
    start = position - len(trigger)
    if not named:
        before = re.search(r"[^\s(),<>\[\]:]*$", text[:start])
        start = before.start() if before else start
    end = NAME_ENDS.search(text, position)
    run = text[start : end.start() if end else len(text)]
    names = [run, run.rstrip(","), text[start:position] + text[position : start + len(run)].split(",")[0]]
    for name in [*names, trigger] if named else names:
        if (named or name != trigger) and is_file(name):
            return start + len(name)
    return 0


def near_misses(text: str, triggers: Iterable[str]) -> dict[str, str]:
    """Trigger -> what stands in a prompt in its place, where only upper and lower case differ."""
    found = {}
    for trigger in triggers:
        pattern = rf"(?<!{GOES_ON}){re.escape(trigger)}(?!{GOES_ON}|\*)"
        match = re.search(pattern, text, re.IGNORECASE)
        if match and match.group() != trigger:
            found[trigger] = match.group()
    return found


def embedding_file(name: str, folders: object) -> bool:
    """Whether the stock tokenizer finds a textual inversion of this name, in its folders or in folders inside them."""
    if not name:
        return False
    roots = [folders] if isinstance(folders, (str, os.PathLike)) else list(folders or [])  # type: ignore[call-overload]
    for root in roots:
        for folder, _, _ in os.walk(root, followlinks=True):
            path = os.path.abspath(os.path.join(folder, name))
            inside = path.startswith(os.path.abspath(folder) + os.sep)
            if inside and any(os.path.isfile(path + extension) for extension in EXTENSIONS):
                return True
    return False


def tokenizer_with_concepts(tokenizer: object, embeddings: Mapping[str, Tensor]) -> object:
    """A private copy of a CLIP's tokenizer whose ``embedding:e4t/<trigger>`` finds these word embeddings.

    Args:
        tokenizer: a ComfyUI tokenizer for one text encoder (SD 1.x, SD 2.x); it stays as it is.
        embeddings: trigger -> static embedding, ``(D,)`` or ``(V, D)`` for V tokens; the tensor itself becomes them.
    """
    outer = copy.copy(tokenizer)
    inner = copy.copy(getattr(tokenizer, tokenizer.clip))  # type: ignore[attr-defined]
    stock_lookup = type(inner)._try_get_embedding
    if inner.embedding_directory is None:
        inner.embedding_directory = []

    def look_up(name: str) -> tuple[Tensor | None, str, str]:
        rest = name.removeprefix(FOLDER)
        if rest == name:
            return stock_lookup(inner, name)
        if rest in embeddings:
            return embeddings[rest], name, ""
        # A file "my-cat" comes before the concept "my" with "-cat" behind it.
        file = stock_lookup(inner, name)
        if file[0] is not None:
            return file
        for trigger in sorted(embeddings, key=len, reverse=True):
            behind = rest[len(trigger) :]
            if rest.startswith(trigger) and not re.match(rf"{GOES_ON}|\*", behind):
                return embeddings[trigger], FOLDER + trigger, behind.strip()
        return file

    inner._try_get_embedding = look_up
    setattr(outer, tokenizer.clip, inner)  # type: ignore[attr-defined]
    return outer
