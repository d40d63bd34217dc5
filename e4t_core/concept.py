"""A concept: all that was learned about one photo, and all that drawing it needs, whichever method learned it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from .attention_changes import AttentionChange
from .loop_settings import LoopSettings, SamplingSettings
from .recipe import Recipe
from .weight_changes import WeightChange


class WordPredictor(Protocol):
    """Predicts a concept's word embedding anew at every denoising evaluation (E4T)."""

    @property
    def network(self) -> nn.Module:
        """What a host moves to the device and counts."""

    @property
    def feature_width(self) -> int:
        """Width of the UNet features that it reads."""

    def word(self, unet_features: Tensor) -> Tensor:
        """Word embeddings ``(B, D)`` for UNet features ``(B, feature_width)`` on any device."""


@dataclass(frozen=True, eq=False)
class Concept:
    """The result of :func:`e4t_core.training.train`. All tensors are on the CPU and without gradients.

    They are float32, differences of weights apart (see :mod:`~.stored_difference`).

    Attributes:
        trigger: what a person types in a prompt ("S*").
        method: name of the method that learned it ("e4t").
        fingerprint: content hash of what was learned, the trigger and how it is drawn left out; equal inputs and seed
            give equal hashes on a CPU.
        base_fingerprint: content hash of the effective base weights it was tuned on.
        embedding: ``(V, D)``, the word embedding as V tokens; for E4T its mean over noise levels.
        weights: what it changes of the base's weights; only tensors that changed.
        attention: what it changes of a prompt for single cross-attention layers; none for most methods.
        settings: how it was learned.
        seed: of noise, timesteps and templates.
        predictor: refines the word at every evaluation; none where the word is fixed.
        word: the coarse word that it started from ("face").
        start: that word's embedding ``(D,)``, where the word is at strength 0; none if it is not known.
        prediction: what the base predicts, "epsilon" or "v"; empty if it is not known.
        base_name: of the base model's file; empty if it is not known.
        domain_name, domain_fingerprint: of the domain it was tuned in; empty for methods without one.
        sampling: how it is drawn.
        recipe: what learns it again; none for one that cannot be, such as a mix.
        to_learn: it has a recipe and its fixed word, and nothing else yet: it must be learned again to be drawn.
        losses: mean loss of every optimizer step that was kept.
        notes: what a person should know about how it was learned; each one sentence.
    """

    trigger: str
    method: str
    fingerprint: str
    base_fingerprint: str
    embedding: Tensor
    weights: tuple[WeightChange, ...]
    settings: LoopSettings
    seed: int
    predictor: WordPredictor | None = None
    attention: AttentionChange | None = None
    word: str = ""
    start: Tensor | None = None
    prediction: str = ""
    base_name: str = ""
    domain_name: str = ""
    domain_fingerprint: str = ""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    recipe: Recipe | None = None
    to_learn: bool = False
    losses: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def refines(self) -> bool:
        """Whether its word is predicted anew at every evaluation."""
        return self.predictor is not None and self.sampling.refine
