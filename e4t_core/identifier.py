"""A word that is not learned: a rare identifier before the class word, "sks face", as DreamBooth's prompts have it.

What is learned lies in the weights. The trigger stands for both tokens, so that "a photo of S*" is "a photo of sks face".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .prior import PriorRun, PriorSettings
from .settings import setting

LONGEST = 40


@dataclass(frozen=True)
class IdentifierSettings(PriorSettings):
    """Settings of methods whose word is an identifier and the class word.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    identifier: str = setting(
        "sks",
        "A rare word of one token that marks what is learned; the trigger stands for it and the class word. Give two"
        " concepts in one picture two of them.",
        filled=True,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.identifier) > LONGEST or not self.identifier.isprintable() or set(self.identifier) & set(" {}"):
            raise ValueError(
                f"Setting identifier = {self.identifier[:LONGEST]!r} must be one word of at most {LONGEST} characters."
            )


class IdentifierRun(PriorRun):
    """A run whose prompts do not change.

    Raises:
        WordError: the identifier is not one token.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._word = torch.stack([self.row(self.settings.identifier), self.class_row])
        self._contexts: dict[int, Tensor] = {}

    def word(self) -> Tensor:
        return self._word

    def contexts(self, templates: Sequence[int]) -> Tensor:
        for number in templates:
            if number not in self._contexts:
                with torch.no_grad():
                    self._contexts[number] = super().contexts([number])[0]
        return torch.stack([self._contexts[number] for number in templates])
