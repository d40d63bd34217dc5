"""E4T's one-shot tuning (the paper's section 3.4): domain encoder, weight offsets and UNet learn one photo by AdamW."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...concept import Concept
from ...diffusion import DiffusionSample, draw_samples
from ...fingerprint import fingerprint
from ...memory_plan import MemoryPlan
from ...training import BaseModel, OnPass, Phase, Photos, TuningError, chunks
from ...weight_changes import Full, Scaled
from . import photo_fit, subject
from .domain import Domain
from .domain_info import check_base
from .settings import TuningSettings
from .tuned_weights import TunedWeights
from .word_model import WordModel
from .word_predictor import E4TPredictor

# Noise levels over which the static word embedding is averaged, at least.
STATIC_LEVELS = 16

Module = TypeVar("Module", bound=nn.Module)


class E4T:
    """The method, for one domain.

    Args:
        domain: what was pre-trained; never changed.
    """

    name = "e4t"
    Settings = TuningSettings

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def start(self, base: BaseModel, photos: Photos, settings: TuningSettings, seed: int, trigger: str) -> E4TRun:
        """A run that trains float32 copies.

        Raises:
            DomainMismatchError: the domain was made for another base.
            WordError: the domain word is not one token in this text encoder.
            TuningError: the photos do not fit the encoder.
        """
        unet, info, encoder = base.unet, self.domain.info, self.domain.encoder
        check_base(info, base.text.width, unet.prediction, unet.feature_width, unet.attention_projections())
        given = None if photos.clip_features is None else tuple(photos.clip_features.shape[1:])
        if given != (encoder.layers, encoder.clip_width):
            raise TuningError(
                f"The photos' CLIP features are {given} (layers, width), but domain {info.name!r} reads"
                f" {(encoder.layers, encoder.clip_width)}: use the image backbone {info.backbone.architecture!r}."
            )
        return E4TRun(self.domain, base, photos, settings, seed, trigger)


class E4TRun:
    """One tuning; see ``training.Run``."""

    def __init__(
        self, domain: Domain, base: BaseModel, photos: Photos, settings: TuningSettings, seed: int, trigger: str
    ) -> None:
        self.domain, self.base, self.settings, self.seed, self.trigger = domain, base, settings, seed, trigger
        self.effective = base.unet.parameters()
        device = next(iter(self.effective.values())).device
        self.photos = photos.for_training(settings, device)
        self.finds_subject = settings.use_mask and settings.find_subject and photos.masks is None and settings.steps > 0
        self.asks_domain = domain.info.fit_threshold is not None and settings.steps > 0
        self.notes: tuple[str, ...] = ()
        info = domain.info
        encoder = _filled(domain.encoder.blank(), domain.encoder, device, settings.train_encoder)
        offsets = _filled(domain.offsets.blank(), domain.offsets, device, settings.train_offsets)
        self.templates = info.templates
        self.words = WordModel.of(base.unet, base.text, encoder, info.word, info.scale, self.templates)
        assert self.photos.clip_features is not None
        self.clip_features = self.photos.clip_features
        self.tuned = TunedWeights(
            self.effective, offsets, settings.train_offsets, settings.train_unet, self._mean_features()
        )

    def with_unet(self, weights: Mapping[str, Tensor]) -> E4TRun:
        """This run with a UNet that was tuned elsewhere (by canonical name) in place of the base's; call it before all else."""
        offsets = _filled(self.domain.offsets.blank(), self.domain.offsets, self.photos.latents.device, False)
        self.tuned = TunedWeights(self.effective, offsets, False, False, self._mean_features(), weights)
        return self

    def _mean_features(self) -> Tensor:
        return self.clip_features.mean(dim=0, keepdim=True)

    def _static_levels(self) -> int:
        return len(self.photos) * math.ceil(STATIC_LEVELS / len(self.photos))

    def passes(self, plan: MemoryPlan) -> Mapping[Phase, int]:
        looks = subject.PASSES if self.finds_subject else 0
        looks += math.ceil(photo_fit.LEVELS / plan.micro_batch) if self.asks_domain else 0
        return {
            "subject": looks * len(self.photos),
            "word": math.ceil(self._static_levels() / plan.micro_batch),
        }

    @torch.no_grad()
    def prepare(self, plan: MemoryPlan, on_pass: OnPass) -> None:
        """Ask the untuned domain whether it knows what the photos show, and where the subject is if nobody painted a mask."""
        if self.asks_domain:
            self.notes = photo_fit.about_fit(self.domain.info, self.gains(plan, on_pass))
        if self.finds_subject:
            with self.base.unet.using(self.tuned.effective()):
                masks = subject.find_subject(self.words, self.photos.latents, self.clip_features, self.seed, on_pass)
            self.photos = Photos(self.photos.latents, self.clip_features, masks)

    def gains(self, plan: MemoryPlan, on_pass: OnPass = lambda: None) -> tuple[float, ...]:
        """How well the domain's word explains each photo, see ``photo_fit``."""
        with torch.no_grad(), self.base.unet.using(self.tuned.effective()):
            return photo_fit.photo_gains(self.words, self.photos, plan.micro_batch, on_pass)

    def groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = [{"params": list(self.tuned.parameters)}] if self.tuned.parameters else []
        if self.settings.train_encoder:
            rate = self.settings.learning_rate * self.settings.encoder_rate
            groups.append({"params": list(self.words.encoder.parameters()), "lr": rate})
        return groups

    def weights(self) -> Mapping[str, Tensor]:
        return self.tuned.effective()

    def losses(self, sample: DiffusionSample) -> Tensor:
        chosen, masks = sample.photos, self.photos.masks
        parts = self.words.losses(
            self.photos.latents[chosen],
            self.clip_features[chosen],
            sample,
            None if masks is None else masks[chosen],
            self.settings.stop_feature_gradient,
        )
        return parts.per_sample(self.settings.regularization)

    def concept(self, plan: MemoryPlan, on_pass: OnPass) -> Concept:
        """The tuned concept, its fixed word averaged over noise levels of its own latents.

        Raises:
            TuningError: the word is not finite.
        """
        info, settings = self.domain.info, self.settings
        static = self._static_embedding(plan, on_pass)
        encoder = self.words.encoder.eval().requires_grad_(False).cpu()
        base_fingerprint = self.base.fingerprint or fingerprint(self.effective)
        predictor = E4TPredictor(
            encoder, self._mean_features().cpu(), self.words.domain_word_embedding.cpu(), info.scale
        )
        return Concept(
            trigger=self.trigger,
            method=E4T.name,
            fingerprint=self._fingerprint(static, base_fingerprint),
            base_fingerprint=base_fingerprint,
            embedding=static[None],
            weights=(
                *domain_changes(self.domain),
                *(Full.of(name, difference) for name, difference in self.tuned.differences().items()),
            ),
            settings=settings,
            seed=self.seed,
            predictor=predictor,
            domain_name=info.name,
            domain_fingerprint=self.domain.fingerprint,
            notes=self.notes,
        )

    def _fingerprint(self, static: Tensor, base_fingerprint: str) -> str:
        inputs = {
            "latents": self.photos.latents,
            "photos": self.clip_features,
            "e_d": self.words.domain_word_embedding,
            "static": static,
        }
        inputs |= {} if self.photos.masks is None else {"masks": self.photos.masks}
        described = json.dumps([self.settings.learned_with(), self.seed, self.domain.info.scale], sort_keys=True)
        # Its tuned weights follow from all this; hashing gigabytes of them would tell no more.
        state = self.words.encoder.state_dict()
        return fingerprint(inputs | state, described, self.domain.fingerprint, base_fingerprint)

    def _static_embedding(self, plan: MemoryPlan, on_pass: OnPass) -> Tensor:
        """e_c averaged over noise levels of the concept's own latents, with the tuned weights: ``(D,)`` on the CPU."""
        latents, unet, levels = self.photos.latents, self.base.unet, self._static_levels()
        weights, features, offsets = self.tuned.effective(), self._mean_features(), []
        for indices in chunks(levels, plan.micro_batch):
            sample = draw_samples(
                self.seed,
                indices,
                latent_shape=latents.shape[1:],
                batch=levels,
                photos=len(self.photos),
                timesteps=unet.schedule.timesteps,
                stream="static",
            ).to(latents.device)
            z = unet.schedule.add_noise(latents[sample.photos], sample.noise, sample.timesteps)
            with unet.using(weights):
                offsets.append(self.words.offset(z, sample.timesteps, features))
            on_pass()
        static = self.words.at(torch.cat(offsets).mean(dim=0))
        if not torch.isfinite(static).all():
            raise TuningError(
                f"The word embedding became NaN or infinite after {self.settings.steps} steps: lower the learning rate"
                f" ({self.settings.learning_rate:g}), or run the base model in a wider float type."
            )
        return static.cpu()


def domain_changes(domain: Domain) -> tuple[Scaled, ...]:
    """What all concepts of a domain change alike: its untuned offsets, on the CPU."""
    shared = domain.offsets.shared()
    return tuple(Scaled(name, p.cpu(), q.cpu(), domain.fingerprint) for name, (p, q) in shared.items())


def _filled(copy: Module, source: nn.Module, device: torch.device, trains: bool) -> Module:
    state = {key: value.detach().to(device, torch.float32, copy=True) for key, value in source.state_dict().items()}
    copy.load_state_dict(state, assign=True)
    return copy.requires_grad_(trains)
