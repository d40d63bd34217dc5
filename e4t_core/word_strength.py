"""A concept whose word lies between the coarse word that it started from and what was learned, or beyond."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor, nn

from .attention_changes import with_words
from .concept import Concept, WordPredictor


@dataclass(frozen=True, eq=False)
class PredictorAtStrength:
    """``start + strength * (word - start)``; the core's ``WordPredictor``.

    Attributes:
        predictor: of the word.
        start: ``(D,)``.
        strength: 1 is the word itself.
    """

    predictor: WordPredictor
    start: Tensor
    strength: float

    @property
    def network(self) -> nn.Module:
        """The predictor's."""
        return self.predictor.network

    @property
    def feature_width(self) -> int:
        """The predictor's."""
        return self.predictor.feature_width

    def word(self, unet_features: Tensor) -> Tensor:
        """Word embeddings ``(B, D)`` for UNet features ``(B, feature_width)``."""
        word = self.predictor.word(unet_features)
        start = self.start.to(word)
        return start + self.strength * (word - start)


def at_word_strength(concept: Concept, strength: float) -> Concept:
    """A concept with its word at a strength: 0 is the coarse word ("face"), 1 the concept itself, unchanged.

    It keeps its fingerprint, because it says how it is drawn, not what was learned.

    Raises:
        ValueError: it is not known what word it started from.
    """
    if strength == 1:
        return concept
    if concept.start is None:
        raise ValueError(
            f"The strength of the word of {concept.trigger!r} must be 1: its file does not say what word it started from."
        )
    embedding = concept.start.expand_as(concept.embedding)
    attention = with_words(concept.attention, concept.start, strength)
    if strength == 0:
        return dataclasses.replace(concept, embedding=embedding.clone(), predictor=None, attention=attention)
    predictor = concept.predictor
    if predictor is not None:
        predictor = PredictorAtStrength(predictor, concept.start, strength)
    embedding = embedding + strength * (concept.embedding - embedding)
    return dataclasses.replace(concept, embedding=embedding, predictor=predictor, attention=attention)
