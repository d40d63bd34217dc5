"""Extended Textual Inversion (Voynov et al. 2023, arXiv 2303.09522, "P+"): a word embedding for each cross-attention layer.

Every cross-attention layer of the UNet reads the prompt with another embedding in the word's place, so that coarse layers learn
the shape and fine ones the look (the paper's section 3, "P+ space"). All of them start as the embedding of a coarse word and
are trained at once by the plain diffusion loss, as Textual Inversion's one word (section 3.2, equation 2); the base stays as
it is. The paper states a rate of 5e-3, a batch of 8 and 500 steps, a tenth of Textual Inversion's (section 4). We: AdamW without weight
decay, a rate that falls to zero over the second half, the photo cropped and masked, and 1 to 3 vectors for each layer.

The text encoder runs once for each layer and template, forward twice and backward once, and keeps nothing in between.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attention_changes import LayerWords
from ..concept import Concept
from ..diffusion import DiffusionSample, denoising_errors
from ..fingerprint import fingerprint
from ..layer_contexts import LayerContexts, cross_attentions
from ..loop_settings import LoopSettings
from ..memory_need import Trained
from ..memory_plan import FAST, MemoryPlan
from ..photos import Photos, TuningError
from ..recomputed import recomputed
from ..run import BaseModel, OnPass, Phase
from ..settings import setting
from ..templates import NEUTRAL
from ..trained_weight import TrainedWeight


@dataclass(frozen=True)
class ExtendedTextualInversionSettings(LoopSettings):
    """Settings of Extended Textual Inversion.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    steps: int = setting(500, "Optimizer steps. More learn more, and more slowly.", least=0, most=100_000)
    learning_rate: float = setting(
        5e-3, "Every step moves every number of every layer's word by about this much.", least=0, most=1, step=1e-4
    )
    batch: int = setting(8, "Noise levels of the photos per step.", least=1, most=256, unit="samples")
    rate_decay: bool = setting(
        True, "Lowers the learning rate to zero over the second half of the steps.", advanced=True
    )
    weight_decay: float = setting(
        0.0, "AdamW: pull of every trained number to zero.", least=0, most=0.5, step=0.001, advanced=True
    )
    vectors: int = setting(
        1,
        "How many tokens the word is in each layer. More hold more of the photo, and obey prompts less.",
        least=1,
        most=3,
    )


class ExtendedTextualInversion:
    """The method, from a coarse word.

    Args:
        class_word: what kind of thing the photos show ("face", "dog"); one token of the text encoder.
        templates: prompts, each with "{}" once where the word stands.
    """

    name = "extended_textual_inversion"
    Settings = ExtendedTextualInversionSettings

    def __init__(self, class_word: str, templates: tuple[str, ...] = NEUTRAL) -> None:
        self.class_word, self.templates = class_word, templates

    def trained(self, settings: ExtendedTextualInversionSettings) -> Trained:
        return Trained()

    def start(
        self,
        base: BaseModel,
        photos: Photos,
        settings: ExtendedTextualInversionSettings,
        seed: int,
        trigger: str,
        plan: MemoryPlan = FAST,
    ) -> ExtendedTextualInversionRun:
        """A run that trains ``settings.vectors`` copies of the class word's embedding for each cross-attention layer.

        Raises:
            WordError: the class word is not one token.
        """
        return ExtendedTextualInversionRun(self, base, photos, settings, seed, trigger)


class ExtendedTextualInversionRun:
    """One run; see ``run.Run``."""

    def __init__(
        self,
        method: ExtendedTextualInversion,
        base: BaseModel,
        photos: Photos,
        settings: ExtendedTextualInversionSettings,
        seed: int,
        trigger: str,
    ) -> None:
        self.base, self.settings, self.seed, self.trigger = base, settings, seed, trigger
        self.effective = base.unet.parameters()
        device = base.unet.device
        self.photos = photos.for_training(settings, device)
        self.templates: Sequence[str] = method.templates
        self.notes: tuple[str, ...] = ()
        self.word = method.class_word
        self.layers = cross_attentions(base.unet.attention_projections())
        start = base.text.word(method.class_word).detach().to(device, torch.float32)
        self.start = start.cpu().clone()
        self.embeddings = nn.Parameter(start.expand(len(self.layers), settings.vectors, -1).clone())

    def passes(self) -> Mapping[Phase, int]:
        return {}

    def prepare(self, on_pass: OnPass) -> None:
        """Nothing has to be known before."""

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.embeddings]}]

    def weights(self) -> Mapping[str, TrainedWeight]:
        return {}

    def losses(self, sample: DiffusionSample) -> Tensor:
        latents, masks = self.photos.latents[sample.photos], self.photos.masks
        context = self._contexts(sample.templates)
        return denoising_errors(
            self.base.unet, latents, sample, context, None if masks is None else masks[sample.photos]
        )

    def context(self, _z: Tensor, _t: Tensor) -> LayerContexts:
        return self._contexts([0])

    def _contexts(self, templates: Sequence[int]) -> LayerContexts:
        """Templates with each layer's word, ``(B, L, D)`` for every layer; equal templates are encoded once."""
        different = sorted(set(templates))
        prompts = [self.templates[number] for number in different]
        rows = torch.tensor([different.index(number) for number in templates], device=self.embeddings.device)
        encode = partial(_encoded, self.base.text, prompts)
        read = {layer: recomputed(encode, word)[rows] for layer, word in zip(self.layers, self.embeddings, strict=True)}
        return LayerContexts(next(iter(read.values())), read, read)

    def concept(self, on_pass: OnPass) -> Concept:
        """The learned words.

        Raises:
            TuningError: they are not finite.
        """
        embeddings = self.embeddings.detach().cpu().clone()
        if not torch.isfinite(embeddings).all():
            raise TuningError(
                f"The word embeddings became NaN or infinite after {self.settings.steps} steps: lower the learning rate"
                f" ({self.settings.learning_rate:g})."
            )
        words = LayerWords(self.layers, embeddings)
        base_fingerprint = self.base.fingerprint or fingerprint(self.effective)
        described = json.dumps(
            [ExtendedTextualInversion.name, self.settings.learned_with(), self.seed, *self.layers], sort_keys=True
        )
        return Concept(
            trigger=self.trigger,
            method=ExtendedTextualInversion.name,
            fingerprint=fingerprint({"embeddings": embeddings}, described, base_fingerprint),
            base_fingerprint=base_fingerprint,
            embedding=words.mean(),
            weights=(),
            attention=words,
            settings=self.settings,
            seed=self.seed,
            word=self.word,
            start=self.start,
            prediction=self.base.unet.prediction,
        )


def _encoded(text: Any, prompts: Sequence[str], word: Tensor) -> Tensor:
    """Prompts ``(B, L, D)`` with one word ``(V, D)``."""
    return text.encode(prompts, word.expand(len(prompts), -1, -1))
