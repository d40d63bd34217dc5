"""Perfusion (Tewel et al. 2023, arXiv 2305.01644): a word, and a gated rank-1 edit of every cross-attention's keys and values.

In every layer the word's key is LOCKED to the class word's, so that it takes its place in prompts as that does; what it looks like
is a value that is learned for each layer. A gate opens where a token's encoding is like the word's own,
measured by the covariance of text encodings. The formula is in ``attention_changes.gated_edit``.

The paper states beta = 0.75 and tau = 0.1 for training, beta 0.6 to 0.75 and tau = 0.15 for drawing, a running mean of 0.99 of the word's
encoding i*, and about 400 steps with a batch of 16. We: the similarity is divided by that of i* with itself; the running mean
takes each step's mean; rates as below; only prompts in which the word stands are edited. And the value that is learned is the
layer's input x, its target o* = W x: so the edit is of a context, and lives beside other nodes' patches of attention. Where
a layer is narrower than the context (320 and 640 of Stable Diffusion 1.x) any o* is some W x; in wider ones it is
what the layer can say of a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attention_changes import GatedEdit, gated_edit
from ..diffusion import DiffusionSample, denoising_errors
from ..layer_contexts import LayerContexts, cross_attentions
from ..photos import TuningError
from ..run import OnPass, Phase
from ..settings import setting
from ..sibling import Sibling, SiblingRun, SiblingSettings
from ..text_covariance import PASSES, first_difference, text_covariance

KEPT = 0.99
"""Of the running mean of the word's encoding, at every step."""
# Of the covariance's mean diagonal: a direction that no caption shows would count for everything.
DAMPING = 1e-2


@dataclass(frozen=True)
class PerfusionSettings(SiblingSettings):
    """Settings of Perfusion.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    steps: int = setting(400, "Optimizer steps. More learn more, and more slowly.", least=0, most=100_000)
    learning_rate: float = setting(
        5e-3, "Every step moves every number of the word by about this much.", least=0, most=1, step=1e-4
    )
    batch: int = setting(16, "Noise levels of the photos per step.", least=1, most=256, unit="samples")
    weight_decay: float = setting(
        0.0, "AdamW: pull of every trained number to zero.", least=0, most=0.5, step=0.001, advanced=True
    )
    value_rate: float = setting(
        6.0,
        "By how many times the learning rate the layers' values move: how fast the look is learned.",
        least=0,
        most=100,
        step=0.5,
        advanced=True,
    )
    bias: float = setting(
        0.75,
        "While learning: how like the word a token must be for the gate to be half open. 1 is the word itself.",
        least=0,
        most=1,
        step=0.01,
        advanced=True,
    )
    temperature: float = setting(
        0.1, "While learning: how softly the gate opens.", least=0.001, most=1, step=0.01, advanced=True
    )
    drawing_bias: float = setting(
        0.7,
        "While drawing: how like the word a token must be for the gate to be half open. Lower: more likeness; higher: prompts"
        " are obeyed more.",
        least=0,
        most=1,
        step=0.01,
    )
    drawing_temperature: float = setting(
        0.15, "While drawing: how softly the gate opens.", least=0.001, most=1, step=0.01, advanced=True
    )


class PerfusionRun(SiblingRun):
    """A run that trains the word and a value for each layer, and follows the word's encoding."""

    method: Perfusion

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.layers = cross_attentions(self.base.unet.attention_projections())
        width = self.base.text.width
        self.embedding = nn.Parameter(self.class_row[None].clone())
        self.values = nn.Parameter(torch.zeros(len(self.layers), width, device=self.device))
        self.key = self.encoding = self.direction = torch.zeros(width, device=self.device)
        self._places: list[int] = []
        self._factor = torch.eye(1)
        self._step, self._seen = -1, dict[int, Tensor]()

    def passes(self) -> Mapping[Phase, int]:
        return {"subject": 0 if self.method.covariance is not None else PASSES}

    @torch.no_grad()
    def prepare(self, on_pass: OnPass) -> None:
        """Find the word in each template, what the class word is encoded as, and the covariance if nobody has it."""
        text = self.base.text
        known = text.encode(self.templates, self.class_row.expand(len(self.templates), -1))
        other = text.encode(self.templates, -self.class_row.expand(len(self.templates), -1))
        self._places = [first_difference(one, its) for one, its in zip(known, other, strict=True)]
        self.key = self._at_word(known, range(len(self.templates))).mean(dim=0).float()
        self.values.copy_(self.key.expand_as(self.values))
        covariance = self.method.covariance
        if covariance is None:
            covariance = text_covariance(text, self.method.class_word, on_pass)
        covariance = covariance.double().cpu()
        damped = covariance + DAMPING * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
        self._factor = torch.linalg.cholesky(damped)
        self._follow(self.key)

    def _follow(self, encoding: Tensor) -> None:
        """From now on, this is i*."""
        self.encoding = encoding
        solved = torch.cholesky_solve(encoding.double().cpu()[:, None], self._factor)[:, 0]
        self.direction = solved.to(encoding)

    def _at_word(self, contexts: Tensor, templates: Sequence[int]) -> Tensor:
        """The word's rows ``(B, D)`` of encoded templates."""
        return contexts[range(len(templates)), [self._places[number] for number in templates]]

    def word(self) -> Tensor:
        return self.embedding

    def groups(self) -> list[dict[str, Any]]:
        rate = self.settings.learning_rate * self.settings.value_rate
        return [{"params": [self.embedding]}, {"params": [self.values], "lr": rate}]

    def losses(self, sample: DiffusionSample) -> Tensor:
        step = sample.numbers[0] // self.settings.batch
        if step != self._step:
            self._end_step()
            self._step = step
        context = self.read(sample.templates)
        rows = self._at_word(context.plain.detach(), sample.templates).float()
        self._seen.update(zip(sample.numbers, rows, strict=True))
        latents, masks = self.photos.latents[sample.photos], self.photos.masks
        return denoising_errors(
            self.base.unet, latents, sample, context, None if masks is None else masks[sample.photos]
        )

    @torch.no_grad()
    def _end_step(self) -> None:
        """Let i* follow what a step has seen of the word; how it was cut into micro-batches makes no difference."""
        if self._seen:
            mean = torch.stack([self._seen[number] for number in sorted(self._seen)]).mean(dim=0)
            self._follow(KEPT * self.encoding + (1 - KEPT) * mean)
        self._seen = {}

    def read(self, templates: Sequence[int]) -> LayerContexts:
        """Templates with what each layer's keys and values are made of."""
        plain = self.contexts(templates)
        gate = self.settings.bias, self.settings.temperature
        keys = gated_edit(plain, self.encoding, self.direction, self.key, *gate)
        values = {
            layer: gated_edit(plain, self.encoding, self.direction, value, *gate)
            for layer, value in zip(self.layers, self.values, strict=True)
        }
        return LayerContexts(plain, dict.fromkeys(self.layers, keys), values)

    def attention(self) -> GatedEdit:
        """The edit.

        Raises:
            TuningError: it is not finite.
        """
        if self._step < self.settings.steps:
            self._end_step()
        found = [one.detach().float().cpu().clone() for one in (self.encoding, self.direction, self.key, self.values)]
        if not all(bool(torch.isfinite(one).all()) for one in found):
            raise TuningError(
                f"The layers' values became NaN or infinite after {self.settings.steps} steps: lower the learning rate"
                f" ({self.settings.learning_rate:g})."
            )
        encoding, direction, key, values = found
        gate = self.settings.drawing_bias, self.settings.drawing_temperature
        return GatedEdit(self.layers, encoding, direction, key, values, *gate)


class Perfusion(Sibling):
    """The method.

    Args:
        class_word: see ``Sibling``.
        covariance: of text encodings ``(D, D)``, see ``text_covariance``; none: every run computes it.
    """

    name = "perfusion"
    title = "Perfusion"
    Settings = PerfusionSettings
    Run = PerfusionRun

    def __init__(self, class_word: str, covariance: Tensor | None = None) -> None:
        super().__init__(class_word)
        self.covariance = covariance
