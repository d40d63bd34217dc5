"""Which directions a text encoder's answers have in common: their uncentered covariance C, by which Perfusion compares them.

    C = mean(e e^T)

over the tokens of many captions (Perfusion; ROME, Meng et al. 2022, from whom it is taken). The papers take captions of a
data set. We: sentences put together from common words, so that nothing has to be at hand, each ending with a word whose place
is found by putting another one there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from .run import OnPass
from .training import chunks
from .unet import TextEncoder, WordError

SUBJECTS = (
    *(
        "a woman",
        "an old man",
        "two children",
        "a black dog",
        "a small cat",
        "a red car",
        "an empty street",
        "a wooden boat",
    ),
    *(
        "my friend",
        "a portrait of a girl",
        "a bowl of fruit",
        "the city at night",
        "a robot",
        "a green field",
        "a tall tower",
    ),
    "a painting of flowers",
)
RELATIONS = (
    *("next to a {}", "holding a {}", "in front of a {}", "that looks like a {}", "under a blue sky with a {}"),
    *(
        "on the beach, beside a {}",
        "made of glass, with a {}",
        "in the style of a comic, near a {}",
        "from above, without a {}",
    ),
    *("at sunset, behind a large {}", "looking at some {}", "in winter, with snow on the {}"),
)
WORDS = (
    *("house", "tree", "chair", "bird", "horse", "table", "flower", "hat", "bridge", "river", "guitar", "book", "lamp"),
    *("door", "mountain", "bottle", "train", "face", "dog", "cat", "cup", "clock", "window", "ship", "garden", "apple"),
)
BATCH = 16


def captions() -> tuple[str, ...]:
    """The sentences, each ending with "{}" where a word stands."""
    return tuple(f"{subject} {relation}" for subject, relation in product(SUBJECTS, RELATIONS))


PASSES = math.ceil(len(SUBJECTS) * len(RELATIONS) / BATCH)
"""How often :func:`text_covariance` calls ``on_pass``."""


@torch.no_grad()
def text_covariance(text: TextEncoder, word: str, on_pass: OnPass = lambda: None) -> Tensor:
    """C ``(D, D)`` in float64, on the CPU.

    Args:
        text: the encoder.
        word: one that it knows, in case that it knows none of :data:`WORDS`.
        on_pass: called after every pass.

    Raises:
        WordError: it does not know the word.
    """
    rows = list(_rows(text)) or [text.word(word)]
    rows = rows if len(rows) > 1 else [rows[0], -rows[0]]
    total, count = torch.zeros(text.width, text.width, dtype=torch.float64), 0
    sentences = captions()
    for indices in chunks(len(sentences), BATCH):
        templates = [sentences[index] for index in indices]
        first, second = (
            text.encode(templates, torch.stack([rows[(index + shift) % len(rows)] for index in indices]))
            for shift in (0, 1)
        )
        for one, other in zip(first, second, strict=True):
            end = first_difference(one, other)
            # The start of every text is the same row, and what follows its end says nothing new.
            for found in (one, other):
                tokens = found[1 : end + 1].double().cpu()
                total += tokens.T @ tokens
                count += len(tokens)
        on_pass()
    return total / count


def first_difference(one: Tensor, other: Tensor) -> int:
    """The first row in which two contexts ``(L, D)`` differ: text encoders read from left to right.

    Raises:
        ValueError: there is none.
    """
    rows = (one != other).any(dim=-1).nonzero()
    if len(rows) == 0:
        raise ValueError("The text encoder gives the same for two words, so nothing can be learned of a word.")
    return int(rows[0])


def _rows(text: TextEncoder) -> Iterator[Tensor]:
    for word in WORDS:
        try:
            yield text.word(word)
        except WordError:
            continue
