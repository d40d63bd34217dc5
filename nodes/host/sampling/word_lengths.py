"""How far a refined word goes from the coarse word while a picture is drawn (paper, figure 7): |e_c(t) - e_d| / |e_d|.

Noted only where a browser shows it, and without waiting for the device: the numbers are fetched when sampling has ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import live_view

if TYPE_CHECKING:
    from .held_concept import HeldConcept

# Evaluations of one run that are noted; a picture takes 20 to 100.
LONGEST = 1000


@dataclass(eq=False)
class _Noted:
    """One concept's words of a run: its trigger, the coarse word on the device, and per evaluation timestep and length."""

    trigger: str
    start: Tensor
    points: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class WordLengths:
    """The lengths of all words of one sampling run; make a new one per run."""

    def __init__(self) -> None:
        self._watched: bool | None = None
        self._noted: dict[str, _Noted] = {}

    def note(self, held: HeldConcept, word: Tensor, model: Any, sigma: Tensor) -> None:
        """A word was predicted.

        Args:
            held: its concept; without a coarse word that it started from, nothing is noted.
            word: ``(B, D)``, e_c.
            model: ComfyUI's BaseModel that samples.
            sigma: noise levels ``(B,)``.
        """
        if self._watched is None:
            self._watched = live_view.is_watched()
        concept = held.concept
        if not self._watched or concept.start is None:
            return
        noted = self._noted.get(concept.fingerprint)
        if noted is None:
            noted = self._noted[concept.fingerprint] = _Noted(concept.trigger, concept.start.to(word))
        if len(noted.points) < LONGEST:
            length = (word - noted.start).norm(dim=-1).mean() / noted.start.norm()
            noted.points.append((model.model_sampling.timestep(sigma[:1]).float().reshape(()), length.float()))

    def send(self) -> None:
        """Tell the browser, from the noisiest evaluation on; nothing where no word was refined."""
        told = []
        for fingerprint, noted in self._noted.items():
            numbers = torch.stack([torch.stack([t.to(length), length]) for t, length in noted.points]).cpu()
            finite = numbers[torch.isfinite(numbers).all(dim=1)].tolist()
            points = sorted(([round(t), float(f"{length:.4g}")] for t, length in finite), key=lambda point: -point[0])
            told.append({"concept": fingerprint, "trigger": noted.trigger, "points": points})
        if told:
            live_view.send(live_view.WORDS, {"words": told})
