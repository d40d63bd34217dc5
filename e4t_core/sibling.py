"""What E4T's siblings have in common: they learn photos on any base, from a class word and without a domain file.

A sibling says what its word is, what trains, and what it changes of the base. All of them draw the photos' prompts from the same
templates and minimize the same diffusion loss, so that they differ by what the papers say they differ by.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .attention_changes import AttentionChange
from .concept import Concept
from .diffusion import DiffusionSample, denoising_errors
from .fingerprint import fingerprint
from .layer_contexts import Context, changed
from .loop_settings import LoopSettings
from .memory_need import Trained
from .memory_plan import FAST, MemoryPlan
from .photos import Photos, TuningError
from .run import BaseModel, OnPass, Phase
from .settings import setting
from .templates import templates_of
from .trained_weight import TrainedWeight
from .unet import UNet
from .weight_changes import WeightChange


@dataclass(frozen=True)
class SiblingSettings(LoopSettings):
    """Settings that all siblings have; each sets its own steps and rates.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    batch: int = setting(4, "Noise levels of the photos per step.", least=1, most=256, unit="samples")
    rate_decay: bool = setting(
        True, "Lowers the learning rate to zero over the second half of the steps.", advanced=True
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


class Sibling:
    """A method that needs a class word; see ``run.Method``. ``methods.registered`` lists those there are.

    Args:
        class_word: what kind of thing the photos show ("face", "dog"); one token of the text encoder.
    """

    name: str
    """As concepts and files carry it ("lora")."""
    title: ClassVar[str]
    """As people call it ("LoRA")."""
    Settings: ClassVar[type[SiblingSettings]]
    """All have defaults."""
    Run: ClassVar[type[SiblingRun]]
    """What :meth:`start` makes."""

    def __init__(self, class_word: str) -> None:
        self.class_word = class_word

    def trained(self, settings: Any, unet: UNet) -> Trained:
        """How much it trains on a UNet, for the choice of a memory plan; a word alone is nothing."""
        return Trained()

    def start(
        self, base: BaseModel, photos: Photos, settings: Any, seed: int, trigger: str, plan: MemoryPlan = FAST
    ) -> SiblingRun:
        """A run.

        Raises:
            WordError: the class word, or another that the method needs as ONE token, is none.
        """
        return self.Run(self, base, photos, settings, seed, trigger, plan)


class SiblingRun:
    """One run, see ``run.Run``; a sibling overrides what it does otherwise.

    Attributes:
        class_row: embedding ``(D,)`` of the class word, float32 on the UNet's device.
        effective: the base's weights by canonical name.
    """

    def __init__(
        self,
        method: Sibling,
        base: BaseModel,
        photos: Photos,
        settings: Any,
        seed: int,
        trigger: str,
        plan: MemoryPlan,
    ) -> None:
        self.method, self.base, self.settings, self.seed, self.trigger = method, base, settings, seed, trigger
        self.effective = base.unet.parameters()
        self.device = base.unet.device
        self.photos = photos.for_training(settings, self.device)
        self.templates: Sequence[str] = settings.sentences()
        self.notes: tuple[str, ...] = ()
        self.class_row = self.row(method.class_word)

    def row(self, word: str) -> Tensor:
        """The embedding ``(D,)`` of a word, float32 on the UNet's device.

        Raises:
            WordError: it is not one token.
        """
        return self.base.text.word(word).detach().to(self.device, torch.float32)

    def word(self) -> Tensor:
        """The word as it is now ``(V, D)``, differentiable in what of it trains."""
        raise NotImplementedError

    def changes(self) -> tuple[WeightChange, ...]:
        """What was learned in the UNet's weights, on the CPU; called without gradients."""
        return ()

    def attention(self) -> AttentionChange | None:
        """What was learned for single cross-attention layers, on the CPU; called without gradients."""
        return None

    def learned_from(self) -> dict[str, Tensor]:
        """What decides the concept beside settings, seed, base and class word, by a name each."""
        masks = self.photos.masks
        return {"latents": self.photos.latents, **({} if masks is None else {"masks": masks})}

    def passes(self) -> Mapping[Phase, int]:
        return {}

    def prepare(self, on_pass: OnPass) -> None:
        """Nothing has to be known before."""

    def groups(self) -> list[dict[str, Any]]:
        return []

    def weights(self) -> Mapping[str, TrainedWeight]:
        return {}

    def losses(self, sample: DiffusionSample) -> Tensor:
        latents, masks = self.photos.latents[sample.photos], self.photos.masks
        return denoising_errors(
            self.base.unet,
            latents,
            sample,
            self.read(sample.templates),
            None if masks is None else masks[sample.photos],
        )

    def read(self, templates: Sequence[int]) -> Context:
        """What the UNet reads of B templates: :meth:`contexts`, or one for each cross-attention layer."""
        return self.contexts(templates)

    def contexts(self, templates: Sequence[int]) -> Tensor:
        """Contexts ``(B, L, D)`` of B templates by their numbers, with the word as it is now."""
        prompts = [self.templates[number] for number in templates]
        return self.base.text.encode(prompts, self.word().expand(len(prompts), -1, -1))

    def context(self, _z: Tensor, _t: Tensor) -> Context:
        return changed(self.read([0]), torch.Tensor.detach)

    def concept(self, on_pass: OnPass) -> Concept:
        """What was learned.

        Raises:
            TuningError: the word is not finite.
        """
        embedding = self.word().detach().cpu().clone()
        if not torch.isfinite(embedding).all():
            raise TuningError(
                f"The word embedding became NaN or infinite after {self.settings.steps} steps: lower the learning rate"
                f" ({self.settings.learning_rate:g})."
            )
        base_fingerprint = self.base.fingerprint or fingerprint(self.effective)
        described = json.dumps(
            [self.method.name, self.method.class_word, self.settings.learned_with(), self.seed], sort_keys=True
        )
        # Weights that were learned follow from all this.
        inputs = {**self.learned_from(), "embedding": embedding}
        return Concept(
            trigger=self.trigger,
            method=self.method.name,
            fingerprint=fingerprint(inputs, described, base_fingerprint),
            base_fingerprint=base_fingerprint,
            embedding=embedding,
            weights=self.changes(),
            attention=self.attention(),
            settings=self.settings,
            seed=self.seed,
            word=self.method.class_word,
            start=self.class_row.cpu().clone(),
            prediction=self.base.unet.prediction,
            notes=self.notes,
        )
