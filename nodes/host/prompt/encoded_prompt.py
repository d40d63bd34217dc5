"""One encoded prompt: what the text encoder gave, which concepts stand where in it, and how to encode it again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

# Key under which a conditioning names the prompts it was made from, and keeps them; content decides what they mean.
MARK = "e4t_prompts"
# Word embeddings ``(B, D)`` or ``(1, D)`` by concept fingerprint, patchers in use -> ``(B, T, D)`` or ``(1, T, D)``.
Encode = Callable[[dict[str, Tensor], Sequence[object]], Tensor]


def digest(chunk: Tensor) -> bytes:
    """Content hash of a chunk ``(L, D)`` on the CPU."""
    return hashlib.blake2b(chunk.detach().contiguous().view(torch.uint8).numpy().tobytes(), digest_size=16).digest()


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """One encoded prompt.

    Attributes:
        static: ``(1, T, D)`` as the text encoder gave it with static embeddings, on the CPU; nobody else's memory.
        sections: number of equally long chunks that T consists of, one for each of the tokenizer's.
        concepts: fingerprints of the concepts in it -> the triggers they were called by; empty for a plain prompt.
        encode: encodes it again; None for a plain prompt, and for one whose text encoder cannot be run again.
        encoder: identity of the text encoder module, to group what must be held in memory.
        places: for each section, the fingerprints of the concepts in it.
        near: fingerprint -> what the prompt says in place of a trigger, in other upper and lower case.
    """

    static: Tensor
    sections: int
    concepts: dict[str, str]
    encode: Encode | None
    encoder: object
    places: tuple[frozenset[str], ...] = ()
    near: Mapping[str, str] = field(default_factory=dict)

    def __deepcopy__(self, memo: object) -> EncodedPrompt:
        """Itself: nodes that copy a conditioning must not copy its text encoder."""
        return self

    def __reduce__(self) -> tuple[type, tuple[str]]:
        """In a saved conditioning only a word stands for it, which nobody reads."""
        return str, ("an encoded prompt",)

    @property
    def length(self) -> int:
        """Tokens L of a chunk."""
        return self.static.shape[1] // self.sections

    def chunks(self) -> list[Tensor]:
        """``static`` cut into its sections, ``(L, D)`` each."""
        return list(self.static[0].split(self.length, dim=0))

    def concepts_in(self, chunk: int) -> dict[str, str]:
        """Fingerprint -> trigger of the concepts in one section."""
        here = self.places[chunk] if self.places else frozenset(self.concepts)
        return {key: trigger for key, trigger in self.concepts.items() if key in here}

    @cached_property
    def digests(self) -> tuple[bytes, ...]:
        """Content hash of each chunk."""
        return tuple(digest(chunk) for chunk in self.chunks())


class SharedModels(list[Any]):
    """A conditioning's ``additional_models``: copied and saved without the models."""

    def __deepcopy__(self, memo: object) -> SharedModels:
        """Itself."""
        return self

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Nothing of it is saved."""
        return list, ()


def marks_of(cond: Mapping[str, Any]) -> tuple[EncodedPrompt, ...]:
    """The prompts that a conditioning is marked with."""
    return tuple(mark for mark in cond.get(MARK, ()) if isinstance(mark, EncodedPrompt))
