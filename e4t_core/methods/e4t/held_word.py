"""Whether the penalty on the word has taken the word back while it was tuned.

The loss is ``diffusion + lambda · ||E||²``, and how long E is depends on how the domain was trained: one whose words were held
back less, or not at all, has a penalty of many times the diffusion loss at the paper's lambda. Tuning then makes the word short
before it learns the photo (``python -m benchmarks.ablations``, the arms on an "unheld" domain).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from .settings import BEARABLE, TuningSettings
from .word_model import LossParts

SHRUNK = 0.7
"""Length of the word's offset in the last step, as a share of the first step's, from which on down the person is told."""


class HeldWord:
    """Follows the loss's parts over one tuning."""

    def __init__(self, settings: TuningSettings) -> None:
        self._settings = settings
        self._seen: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {0: [], settings.steps - 1: []}

    def see(self, numbers: Sequence[int], parts: LossParts) -> None:
        """Notes the parts of samples with these global numbers, all of one step."""
        step = numbers[0] // self._settings.batch
        if step in self._seen:
            settings, diffusion, offset = self._settings, parts.diffusion.detach(), parts.offset.detach()
            counted = parts.per_sample(settings.regularization, settings.regularization_limit).detach() - diffusion
            self._seen[step].append((diffusion.sum(), offset.sum(), counted.sum()))

    def told(self) -> tuple[str, ...]:
        """What the person should know: nothing, or that the penalty shortened the word, and the limit that keeps it."""
        settings = self._settings
        if settings.steps < 2 or not settings.train_encoder:
            return ()
        first, last = (
            [sum(float(part) for part in parts) for parts in zip(*self._seen[step], strict=True)]
            for step in (0, settings.steps - 1)
        )
        if not (first and last and first[0] > 0 and first[1] > 0):
            return ()
        share, left = first[2] / first[0], math.sqrt(last[1] / first[1])
        if not (share > 1 and left < SHRUNK):
            return ()
        told = (
            f"Tuning made the word {left:.2f} times as long as the domain says, because regularization"
            f" ({settings.regularization:g}) was {share:.0f} times the rest of the loss: if the likeness is too small, set"
            f" regularization_limit to {BEARABLE:g}."
        )
        return (told,)
