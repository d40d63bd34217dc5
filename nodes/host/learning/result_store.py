"""Tuned concepts, kept by content in RAM: the same inputs are never tuned twice, whatever ComfyUI's cache drops.

This is the one piece of state that outlives a node's execution. It also holds the memory of encoded prompts, because
a conditioning may stay cached while the MODEL it belongs to is evicted and made again.
"""

from __future__ import annotations

import logging
from collections import OrderedDict

import psutil

from ..prompt.prompt_memory import PromptMemory
from ..sampling.held_concept import HeldConcept

logger = logging.getLogger(__name__)

# A share of the machine's RAM: a full-size concept with all UNet differences is 3.4 GB.
SHARE = 0.2


class ResultStore:
    """Keeps the most recently used results up to a bound; the newest stays even if it alone is larger.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.prompts = PromptMemory()
        self._results: OrderedDict[str, HeldConcept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._results)

    def size(self) -> int:
        """Bytes held."""
        return sum(parts.size() for parts in self._results.values())

    def get(self, key: str) -> HeldConcept | None:
        """The result of a key, which becomes the most recently used; or None."""
        if key in self._results:
            self._results.move_to_end(key)
        return self._results.get(key)

    def put(self, key: str, parts: HeldConcept) -> None:
        """Keep a result, dropping the least recently used ones beyond the bound."""
        self._results[key] = parts
        self._results.move_to_end(key)
        while len(self._results) > 1 and self.size() > self.limit:
            dropped, _ = self._results.popitem(last=False)
            logger.debug("E4T result store: dropped %s.", dropped[:12])

    def clear(self) -> None:
        """Forget all results and prompts."""
        self._results.clear()
        self.prompts.clear()


STORE = ResultStore(int(psutil.virtual_memory().total * SHARE))
