"""Textual Inversion (Gal et al. 2022, arXiv 2208.01618): nothing but the word embedding is learned.

One to three vectors start as the embedding of a coarse word and are trained so that prompts with them draw the photos
(the paper's equation 2); the base stays as it is. The paper states AdamW, a rate of 5e-3 scaled by its batch of 4 and
its 2 GPUs, 5,000 steps, and 3 to 5 photos (its section 4 and supplement). We: the rate is not scaled and falls to zero
over the second half, nothing is pulled to zero (weight decay 0), and fewer steps do, because the photo is cropped and
masked. It needs no domain file, so it works on every base.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..settings import setting
from ..sibling import Sibling, SiblingRun, SiblingSettings


@dataclass(frozen=True)
class TextualInversionSettings(SiblingSettings):
    """Settings of Textual Inversion.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    steps: int = setting(500, "Optimizer steps. More learn more, and more slowly.", least=0, most=100_000)
    learning_rate: float = setting(
        5e-3, "Every step moves every number of the word by about this much.", least=0, most=1, step=1e-4
    )
    weight_decay: float = setting(
        0.0, "AdamW: pull of every trained number to zero.", least=0, most=0.5, step=0.001, advanced=True
    )
    vectors: int = setting(
        1, "How many tokens the word is. More hold more of the photo, and obey prompts less.", least=1, most=3
    )


class TextualInversionRun(SiblingRun):
    """A run that trains ``settings.vectors`` copies of the class word's embedding."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.embedding = nn.Parameter(self.class_row.expand(self.settings.vectors, -1).clone())

    def word(self) -> Tensor:
        return self.embedding

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.embedding]}]


class TextualInversion(Sibling):
    """The method."""

    name = "textual_inversion"
    title = "Textual Inversion"
    Settings = TextualInversionSettings
    Run = TextualInversionRun
