"""Kinds of change that a concept makes to what cross-attention layers read of a prompt in which its word stands."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LayerWords:
    """A word for each cross-attention layer (Extended Textual Inversion).

    Attributes:
        layers: canonical names of the layers.
        embeddings: ``(layers, V, D)`` float32, on the CPU.
    """

    layers: tuple[str, ...]
    embeddings: Tensor

    def at(self, layer: str) -> Tensor | None:
        """The word ``(V, D)`` that a layer reads; None: the concept's own."""
        return self.embeddings[self.layers.index(layer)] if layer in self.layers else None

    def tensors(self) -> tuple[Tensor, ...]:
        """All that it holds."""
        return (self.embeddings,)

    def mean(self) -> Tensor:
        """The mean word ``(V, D)``, for programs that know one only; of equal words it is that word, bit for bit."""
        return mean_word(self.embeddings)


def mean_word(embeddings: Tensor) -> Tensor:
    """The mean ``(V, D)`` of words ``(layers, V, D)``."""
    # A sum of equal float32 numbers is exact in float64.
    return embeddings.double().mean(dim=0).to(torch.float32)


AttentionChange = LayerWords
