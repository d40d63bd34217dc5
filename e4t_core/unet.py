"""What the method asks of a base model: a UNet and a text encoder, each behind a small protocol.

Every host (ComfyUI, diffusers, the mini world's training network) implements these two. Parameter names are
canonical, i.e. diffusers' ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"), whatever the
network behind calls them, so that a domain trained with one host serves all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from .layer_contexts import Context
from .noise_schedule import NoiseSchedule, Prediction


class WordError(ValueError):
    """A word that the method needs as ONE token is none; the message lists the pieces."""


class UNet(Protocol):
    """A frozen base UNet. Nothing may write to its parameters; other weights are lent to it by :meth:`using`."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def dtype(self) -> torch.dtype:
        """The number type that it computes in."""

    @property
    def prediction(self) -> Prediction:
        """What the network predicts: "epsilon" (SD 1.x) or "v" (SD 2.x)."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule it was trained with."""

    @property
    def feature_width(self) -> int:
        """Width of :meth:`features` (SD 1.x: 10880), derived from the network."""

    def parameters(self) -> Mapping[str, Tensor]:
        """The effective base weights by canonical name: with LoRAs, without E4T concepts; detached, read only.

        A host may compute each of them when it is asked for, and keep none: ask once for what is needed.
        """

    def attention_projections(self) -> dict[str, tuple[int, int]]:
        """Canonical names of all ``attn{1,2}.to_{q,k,v}.weight`` with their shapes (M out, N in)."""

    def using(self, weights: Mapping[str, Tensor], checkpointing: bool = False) -> AbstractContextManager[object]:
        """Let :meth:`denoise` and :meth:`features` use these weights, differentiably; others stay the base's.

        The weights may be of another float type than the network's: the implementation casts within the graph. With
        ``checkpointing`` each block keeps its input only, and is computed again in the backward pass (Chen et al. 2016).
        It is held open over forward AND backward, because gradient checkpointing runs the forward twice.
        Leaving it, also by an exception, restores the base bit for bit.
        """

    def denoise(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        """Noisy latents ``(B, 4, h, w)``, timesteps ``(B,)`` in 0..T-1, context ``(B, L, D)`` -> ``(B, 4, h, w)`` float32.

        In place of one context it takes one for each cross-attention layer.
        """

    def features(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Spatial means of conv_in's, every down block's output and the mid block: ``(B, feature_width)`` float32."""


class TextEncoder(Protocol):
    """The frozen text encoder, which can be given a word embedding in place of a word."""

    @property
    def width(self) -> int:
        """Width D of word embeddings and of the context (SD 1.x: 768)."""

    def word(self, word: str) -> Tensor:
        """The embedding row ``(D,)`` of a word.

        Raises:
            WordError: the word is not exactly one token.
        """

    def encode(self, templates: Sequence[str], words: Tensor) -> Tensor:
        """Contexts ``(B, L, D)`` of B templates, each holding "{}" once where ``words[i]`` stands.

        Differentiable in ``words``: ``(B, D)``, or ``(B, V, D)`` for words of V tokens.
        """

    def empty(self) -> Tensor:
        """Context ``(1, L, D)`` of the empty prompt."""
