"""Tuned concepts, kept by content in RAM: the same inputs are never tuned twice, whatever ComfyUI's cache drops.

This is the one piece of state that outlives a node's execution: with the concepts, what a node shows of them, the content
hashes of models, and the memory of encoded prompts, because a conditioning may stay cached while the MODEL it belongs to is
evicted and made again. ComfyUI's "Free model and node cache" empties it, see ``free_memory``.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import psutil
from PIL import Image
from torch import Tensor

from ....e4t_core.concept import Concept
from ....e4t_core.stored_difference import StoredDifference
from ....e4t_core.subject_search import Subject
from ....e4t_core.weight_changes import shared_factors
from ..prompt.prompt_memory import PromptMemory
from ..sampling.held_concept import HeldConcept, bytes_held, tensors_of
from .content_key import WeightHashes

logger = logging.getLogger(__name__)

# A share of the machine's RAM: the differences of all weights of a full-size UNet are 1.7 GB in half precision.
SHARE = 0.2
# Photos whose subjects are remembered: some numbers for each.
SEARCHES = 256
# Text encoders whose covariance is remembered: 5 MB for each.
COVARIANCES = 4


@dataclass(frozen=True, eq=False)
class Kept:
    """A learned concept and the preview that its node shows."""

    concept: Concept
    sheet: Image.Image | None = None

    def sheet_size(self) -> int:
        """Bytes of the preview."""
        return 3 * self.sheet.width * self.sheet.height if self.sheet else 0


class ResultStore:
    """Keeps the most recently used results up to a bound; the newest stays even if it alone is larger.

    What was computed to draw a concept on a base is found here for as long as a MODEL holds it, and no longer.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.prompts, self.hashes = PromptMemory(), WeightHashes()
        self._results: OrderedDict[str, Kept] = OrderedDict()
        self._held: weakref.WeakValueDictionary[str, HeldConcept] = weakref.WeakValueDictionary()
        self._subjects: OrderedDict[str, tuple[Subject, ...]] = OrderedDict()
        self._covariances: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._results)

    def size(self) -> int:
        """Bytes held; what several results share counts once."""
        kept = self._results.values()
        return bytes_held(tensor for k in kept for tensor in tensors_of(k.concept)) + sum(k.sheet_size() for k in kept)

    def get(self, key: str) -> Concept | None:
        """The result of a key, which becomes the most recently used; or None."""
        if key in self._results:
            self._results.move_to_end(key)
            return self._results[key].concept
        return None

    def sheet(self, key: str) -> Image.Image | None:
        """The preview that was kept with a result, if any."""
        return self._results[key].sheet if key in self._results else None

    def subjects(self, key: str) -> tuple[Subject, ...] | None:
        """The subjects that were found in a photo, or None if it was not looked at."""
        return self._subjects.get(key)

    def remember_subjects(self, key: str, subjects: tuple[Subject, ...]) -> None:
        """Look for them once only."""
        self._subjects[key] = subjects
        while len(self._subjects) > SEARCHES:
            self._subjects.popitem(last=False)

    def covariance(self, key: str) -> Tensor | None:
        """Of a text encoder's answers, see the core's ``text_covariance``; None if it was not computed."""
        return self._covariances.get(key)

    def remember_covariance(self, key: str, covariance: Tensor) -> None:
        """Compute it once only."""
        self._covariances[key] = covariance
        while len(self._covariances) > COVARIANCES:
            self._covariances.popitem(last=False)

    def held(self, key: str) -> HeldConcept | None:
        """A concept on a base, if a MODEL holds it."""
        return self._held.get(key)

    def remember_held(self, key: str, held: HeldConcept) -> None:
        """Find a concept on a base from now on, while a MODEL holds it."""
        self._held[key] = held

    def offset(self, concept: Concept, base: str) -> Mapping[str, StoredDifference] | None:
        """What a held concept of the same domain on the same base has in common with a concept, to be shared with it.

        Args:
            base: content hash of the base weights.
        """
        owner = concept.domain_fingerprint
        if not owner or not shared_factors(concept.weights):
            # Of some concepts the word alone was kept.
            return None
        for held in list(self._held.values()):
            if held.shared and (held.concept.domain_fingerprint, held.base) == (owner, base):
                return held.shared
        return None

    def put(self, key: str, concept: Concept, sheet: Image.Image | None = None) -> None:
        """Keep a result and its preview, dropping the least recently used ones beyond the bound."""
        self._results[key] = Kept(concept, sheet)
        self._results.move_to_end(key)
        while len(self._results) > 1 and self.size() > self.limit:
            dropped, _ = self._results.popitem(last=False)
            logger.debug("E4T result store: dropped %s.", dropped[:12])

    def clear(self) -> None:
        """Forget everything."""
        self._results.clear()
        self._held.clear()
        self._subjects.clear()
        self._covariances.clear()
        self.prompts.clear()
        self.hashes.clear()


STORE = ResultStore(int(psutil.virtual_memory().total * SHARE))
