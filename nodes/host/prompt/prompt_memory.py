"""The prompts that were encoded last, for conditioning whose marks another node has dropped.

A conditioning names the prompts it was made from (its marks), and holds them as long as ComfyUI keeps it. Where the marks
are gone, this memory helps: it never takes the place of a mark.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict

from torch import Tensor

from .encoded_prompt import EncodedPrompt


class PromptMemory:
    """Remembers encoded prompts, the last encoded or used first.

    Use counts, because a prompt that does not change is encoded once and drawn with from ComfyUI's own cache, however
    many others come and go beside it in a batch of jobs. A prompt whose tensor somebody still holds is never forgotten.

    Args:
        limit: prompts kept beyond those in use (SD 1.x: 0.23 MB per 77 tokens).
        encoders: different text encoder modules whose prompts are kept; a remembered prompt keeps its encoder in RAM.

    Attributes:
        refined: where a word was refined last, as refinement says it; None before.
    """

    def __init__(self, limit: int = 512, encoders: int = 2) -> None:
        self._limit, self._encoders = limit, encoders
        self._prompts: OrderedDict[int, EncodedPrompt] = OrderedDict()
        self._in_use: dict[int, weakref.ref[Tensor]] = {}
        self.refined: object = None

    def __len__(self) -> int:
        return len(self._prompts)

    def clear(self) -> None:
        """Forget all."""
        self._prompts.clear()
        self._in_use.clear()

    def prompts(self) -> list[EncodedPrompt]:
        """All of them, the last encoded or used first."""
        return list(self._prompts.values())

    def remember(self, prompt: EncodedPrompt, given: Tensor | None = None) -> None:
        """Keep a prompt, in place of an older one that gave the same tensor with the same concepts.

        Args:
            given: the tensor that others hold of it; the prompt is in use as long as that lives.
        """
        for key, old in list(self._prompts.items()):
            if old.concepts == prompt.concepts and old.digests == prompt.digests:
                if old.encode is not None and prompt.encode is None:
                    return  # the older one can be encoded again
                self._forget(key)
        key = id(prompt)
        self._prompts[key] = prompt
        self._prompts.move_to_end(key, last=False)
        if given is not None:
            self._in_use[key] = weakref.ref(given)
        self._bound()

    def used(self, prompt: EncodedPrompt) -> None:
        """A prompt was drawn with: of those that nobody holds, it is forgotten last."""
        if id(prompt) in self._prompts:
            self._prompts.move_to_end(id(prompt), last=False)

    def _bound(self) -> None:
        recent = list(dict.fromkeys(id(kept.encoder) for kept in self._prompts.values()))[: self._encoders]
        idle = [key for key in self._prompts if not self._held(key)]
        for key in idle[self._limit :]:
            self._forget(key)
        for key in idle[: self._limit]:
            if id(self._prompts[key].encoder) not in recent:
                self._forget(key)

    def _held(self, key: int) -> bool:
        reference = self._in_use.get(key)
        return reference is not None and reference() is not None

    def _forget(self, key: int) -> None:
        self._prompts.pop(key, None)
        self._in_use.pop(key, None)
