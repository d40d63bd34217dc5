"""Textual Inversion (Gal et al. 2022, arXiv 2208.01618): nothing but the word embedding is learned.

One to three vectors start as the embedding of a coarse word and are trained so that prompts with them draw the photos
(the paper's equation 2); the base stays as it is. The paper states AdamW, a rate of 5e-3 scaled by its batch of 4 and
its 2 GPUs, 5,000 steps, and 3 to 5 photos (its section 4 and supplement). We: the rate is not scaled and falls to zero
over the second half, nothing is pulled to zero (weight decay 0), and fewer steps do, because the photo is cropped and
masked. It needs no domain file, so it works on every base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..concept import Concept
from ..diffusion import DiffusionSample, denoising_errors
from ..fingerprint import fingerprint
from ..loop_settings import LoopSettings
from ..memory_need import Trained
from ..memory_plan import FAST, MemoryPlan
from ..photos import Photos, TuningError
from ..run import BaseModel, OnPass, Phase
from ..settings import setting
from ..templates import templates_of
from ..trained_weight import TrainedWeight


@dataclass(frozen=True)
class TextualInversionSettings(LoopSettings):
    """Settings of Textual Inversion.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    steps: int = setting(500, "Optimizer steps. More learn more, and more slowly.", least=0, most=100_000)
    learning_rate: float = setting(
        5e-3, "Every step moves every number of the word by about this much.", least=0, most=1, step=1e-4
    )
    batch: int = setting(4, "Noise levels of the photos per step.", least=1, most=256, unit="samples")
    rate_decay: bool = setting(
        True, "Lowers the learning rate to zero over the second half of the steps.", advanced=True
    )
    weight_decay: float = setting(
        0.0, "AdamW: pull of every trained number to zero.", least=0, most=0.5, step=0.001, advanced=True
    )
    vectors: int = setting(
        1, "How many tokens the word is. More hold more of the photo, and obey prompts less.", least=1, most=3
    )
    templates: str = setting(
        "neutral",
        "Sentences that the word is learned in. neutral (a photo of {}): what photos show. style (a painting in the style of {}):"
        " how they are made. Or sentences of your own, each with {} where the word stands, and ; between them.",
        filled=True,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sentences()

    def sentences(self) -> tuple[str, ...]:
        """The templates, each with "{}" once.

        Raises:
            ValueError: one is no sentence with "{}" and no set of them.
        """
        return templates_of([entry.strip() for entry in self.templates.split(";") if entry.strip()])


class TextualInversion:
    """The method, from a coarse word.

    Args:
        class_word: what kind of thing the photos show ("face", "dog"); one token of the text encoder.
    """

    name = "textual_inversion"
    Settings = TextualInversionSettings

    def __init__(self, class_word: str) -> None:
        self.class_word = class_word

    def trained(self, settings: TextualInversionSettings) -> Trained:
        return Trained()

    def start(
        self,
        base: BaseModel,
        photos: Photos,
        settings: TextualInversionSettings,
        seed: int,
        trigger: str,
        plan: MemoryPlan = FAST,
    ) -> TextualInversionRun:
        """A run that trains ``settings.vectors`` copies of the class word's embedding.

        Raises:
            WordError: the class word is not one token.
        """
        return TextualInversionRun(self, base, photos, settings, seed, trigger)


class TextualInversionRun:
    """One run; see ``run.Run``."""

    def __init__(
        self,
        method: TextualInversion,
        base: BaseModel,
        photos: Photos,
        settings: TextualInversionSettings,
        seed: int,
        trigger: str,
    ) -> None:
        self.base, self.settings, self.seed, self.trigger = base, settings, seed, trigger
        self.effective = base.unet.parameters()
        device = base.unet.device
        self.photos = photos.for_training(settings, device)
        self.templates: Sequence[str] = settings.sentences()
        self.notes: tuple[str, ...] = ()
        self.word = method.class_word
        start = base.text.word(method.class_word).detach().to(device, torch.float32)
        self.start = start.cpu().clone()
        self.embedding = nn.Parameter(start.expand(settings.vectors, -1).clone())

    def passes(self) -> Mapping[Phase, int]:
        return {}

    def prepare(self, on_pass: OnPass) -> None:
        """Nothing has to be known before."""

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.embedding]}]

    def weights(self) -> Mapping[str, TrainedWeight]:
        return {}

    def losses(self, sample: DiffusionSample) -> Tensor:
        prompts = [self.templates[number] for number in sample.templates]
        context = self.base.text.encode(prompts, self.embedding.expand(len(prompts), -1, -1))
        latents, masks = self.photos.latents[sample.photos], self.photos.masks
        return denoising_errors(
            self.base.unet, latents, sample, context, None if masks is None else masks[sample.photos]
        )

    def context(self, _z: Tensor, _t: Tensor) -> Tensor:
        return self.base.text.encode(self.templates[:1], self.embedding.detach()[None])

    def concept(self, on_pass: OnPass) -> Concept:
        """The learned word.

        Raises:
            TuningError: it is not finite.
        """
        embedding = self.embedding.detach().cpu().clone()
        if not torch.isfinite(embedding).all():
            raise TuningError(
                f"The word embedding became NaN or infinite after {self.settings.steps} steps: lower the learning rate"
                f" ({self.settings.learning_rate:g})."
            )
        base_fingerprint = self.base.fingerprint or fingerprint(self.effective)
        described = json.dumps([TextualInversion.name, self.settings.learned_with(), self.seed], sort_keys=True)
        return Concept(
            trigger=self.trigger,
            method=TextualInversion.name,
            fingerprint=fingerprint({"embedding": embedding}, described, base_fingerprint),
            base_fingerprint=base_fingerprint,
            embedding=embedding,
            weights=(),
            settings=self.settings,
            seed=self.seed,
            word=self.word,
            start=self.start,
            prediction=self.base.unet.prediction,
        )
