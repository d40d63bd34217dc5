"""Extended Textual Inversion (Voynov et al. 2023, arXiv 2303.09522, "P+"): a word embedding for each cross-attention layer.

Every cross-attention layer of the UNet reads the prompt with another embedding in the word's place, so that coarse layers learn
the shape and fine ones the look (the paper's "P+ space"). All of them start as the embedding of a coarse word and
are trained at once by the plain diffusion loss, as Textual Inversion's one word; the base stays as
it is. The paper states a rate of 5e-3, a batch of 8 and 500 steps, a tenth of Textual Inversion's. We: AdamW without weight
decay, a rate that falls to zero over the second half, the photo cropped and masked, and 1 to 3 vectors for each layer.

The text encoder runs once for each layer and template, forward twice and backward once, and keeps nothing in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attention_changes import LayerWords, mean_word
from ..layer_contexts import LayerContexts, cross_attentions
from ..recomputed import recomputed
from ..settings import setting
from ..sibling import Sibling, SiblingRun, SiblingSettings
from ..unet import TextEncoder


@dataclass(frozen=True)
class ExtendedTextualInversionSettings(SiblingSettings):
    """Settings of Extended Textual Inversion.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    steps: int = setting(500, "Optimizer steps. More learn more, and more slowly.", least=0, most=100_000)
    learning_rate: float = setting(
        5e-3, "Every step moves every number of every layer's word by about this much.", least=0, most=1, step=1e-4
    )
    batch: int = setting(8, "Noise levels of the photos per step.", least=1, most=256, unit="samples")
    weight_decay: float = setting(
        0.0, "AdamW: pull of every trained number to zero.", least=0, most=0.5, step=0.001, advanced=True
    )
    vectors: int = setting(
        1,
        "How many tokens the word is in each layer. More hold more of the photo, and obey prompts less.",
        least=1,
        most=3,
    )


class ExtendedTextualInversionRun(SiblingRun):
    """A run that trains ``settings.vectors`` copies of the class word's embedding for each cross-attention layer."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.layers = cross_attentions(self.base.unet.attention_projections())
        self.embeddings = nn.Parameter(self.class_row.expand(len(self.layers), self.settings.vectors, -1).clone())

    def word(self) -> Tensor:
        return mean_word(self.embeddings)

    def attention(self) -> LayerWords:
        return LayerWords(self.layers, self.embeddings.detach().cpu().clone())

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.embeddings]}]

    def read(self, templates: Sequence[int]) -> LayerContexts:
        """Templates with each layer's word; equal templates are encoded once."""
        different = sorted(set(templates))
        prompts = [self.templates[number] for number in different]
        rows = torch.tensor([different.index(number) for number in templates], device=self.device)
        encode = partial(_encoded, self.base.text, prompts)
        read = {layer: recomputed(encode, word)[rows] for layer, word in zip(self.layers, self.embeddings, strict=True)}
        return LayerContexts(next(iter(read.values())), read, read)


def _encoded(text: TextEncoder, prompts: Sequence[str], word: Tensor) -> Tensor:
    """Prompts ``(B, L, D)`` with one word ``(V, D)``."""
    return text.encode(prompts, word.expand(len(prompts), -1, -1))


class ExtendedTextualInversion(Sibling):
    """The method."""

    name = "extended_textual_inversion"
    title = "Extended Textual Inversion"
    Settings = ExtendedTextualInversionSettings
    Run = ExtendedTextualInversionRun
