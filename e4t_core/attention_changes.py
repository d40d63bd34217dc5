"""Kinds of change that a concept makes to what cross-attention layers read of a prompt in which its word stands."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LayerWords:
    """A word for each cross-attention layer (Extended Textual Inversion).

    Attributes:
        layers: canonical names of the layers, in the order of names.
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


@dataclass(frozen=True, eq=False)
class GatedEdit:
    """A gated rank-1 edit of what keys and values of cross-attention layers are made of (Perfusion), see :func:`gated_edit`.

    All tensors are float32, on the CPU.

    Attributes:
        layers: canonical names of the layers, in the order of names.
        encoding: ``(D,)``, i*, what the text encoder gives for the word.
        direction: ``(D,)``, C^-1 i*.
        key: ``(D,)``, what the text encoder gives for the class word: all keys of the word are locked to it.
        values: ``(layers, D)``, what the word's values are made of.
        bias, temperature: beta and tau of the gate when it draws.
    """

    layers: tuple[str, ...]
    encoding: Tensor
    direction: Tensor
    key: Tensor
    values: Tensor
    bias: float
    temperature: float

    def edited(self, layer: str, context: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """What a layer's keys and values are made of ``(B, L, D)``, in place of a context; strength 0 is the context itself."""
        if layer not in self.layers or strength == 0:
            return context, context
        made = []
        for target in (self.key, self.values[self.layers.index(layer)]):
            encoding, direction, x = (one.to(context.device) for one in (self.encoding, self.direction, target))
            edit = gated_edit(context.float(), encoding, direction, x, self.bias, self.temperature)
            made.append((edit if strength == 1 else context + strength * (edit - context)).to(context.dtype))
        return made[0], made[1]

    def tensors(self) -> tuple[Tensor, ...]:
        """All that it holds."""
        return self.encoding, self.direction, self.key, self.values, torch.tensor([self.bias, self.temperature])


def gated_edit(
    context: Tensor, encoding: Tensor, direction: Tensor, target: Tensor, bias: float, temperature: float
) -> Tensor:
    """Perfusion's edit, of a layer's input in place of its output.

        e' = e - i* s + x g,    s = <C^-1 i*, e> / <C^-1 i*, i*>,    g = sigmoid((s - beta) / tau)

    A layer W gives W e' = W e_perp + o* g for it, with the target o* = W x: x is a class word's encoding for keys, and learned for
    values. A token whose gate is shut (g = 0) stays as it is, bit for bit.

    Args:
        context: ``(B, L, D)``, e.
        encoding: ``(D,)``, i*.
        direction: ``(D,)``, C^-1 i*.
        target: ``(D,)``, x.
        bias, temperature: beta and tau.
    """
    share = (context * direction).sum(-1, keepdim=True) / (encoding * direction).sum(-1, keepdim=True)
    gate = torch.sigmoid((share - bias) / temperature)
    return torch.where(gate == 0, context, context - share * encoding + gate * target)


AttentionChange = LayerWords | GatedEdit


def with_words(change: AttentionChange | None, start: Tensor, strength: float) -> AttentionChange | None:
    """A change with its words at a strength: 0 is the coarse word ``start`` ``(D,)``, and none at all. An edit has no words."""
    if not isinstance(change, LayerWords):
        return change
    if strength == 0:
        return None
    return dataclasses.replace(change, embeddings=start + strength * (change.embeddings - start))
