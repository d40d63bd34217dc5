"""E4T's one-shot tuning (the paper's section 3.4): domain encoder, weight offsets and UNet learn one photo by AdamW."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...concept import Concept
from ...diffusion import DiffusionSample, draw_samples
from ...fingerprint import fingerprint
from ...memory_need import Trained
from ...memory_plan import FAST, MemoryPlan
from ...photos import Photos, TuningError
from ...run import BaseModel, OnPass, Phase
from ...trained_weight import TrainedWeight
from ...training import chunks
from ...unet import TextEncoder, UNet
from ...weight_changes import Scaled
from . import photo_fit, subject
from .domain import Domain
from .domain_info import check_base
from .held_word import HeldWord
from .prior import Prior
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
        unet: weights of a UNet that was tuned elsewhere, by canonical name, in place of the base's; they do not train.
    """

    name = "e4t"
    Settings = TuningSettings

    def __init__(self, domain: Domain, unet: Mapping[str, Tensor] | None = None) -> None:
        self.domain, self.unet = domain, unet

    def trained(self, settings: TuningSettings, unet: UNet) -> Trained:
        domain = self.domain
        through, beside = (sum(p.numel() for p in part.parameters()) for part in (domain.offsets, domain.encoder))
        # In a micro-batch, every sample may have a lesson beside it.
        passes = 2 if settings.prior > 0 else 1
        return Trained(settings.train_unet, through, beside if settings.train_encoder else 0, passes=passes)

    def start(
        self,
        base: BaseModel,
        photos: Photos,
        settings: TuningSettings,
        seed: int,
        trigger: str,
        plan: MemoryPlan = FAST,
    ) -> E4TRun:
        """A run that trains float32 copies.

        Raises:
            DomainMismatchError: the domain was made for another base.
            WordError: the domain word is not one token in this text encoder.
            TuningError: the photos do not fit the encoder.
        """
        check_fits(self.domain, base.unet, base.text, photos.clip_features)
        return E4TRun(self, base, photos, settings, seed, trigger, plan)


class E4TRun:
    """One tuning; see ``run.Run``."""

    def __init__(
        self,
        method: E4T,
        base: BaseModel,
        photos: Photos,
        settings: TuningSettings,
        seed: int,
        trigger: str,
        plan: MemoryPlan,
    ) -> None:
        domain = method.domain
        self.method = method.name
        self.domain, self.base, self.settings, self.seed, self.trigger = domain, base, settings, seed, trigger
        self.effective = base.unet.parameters()
        self.micro_batch = plan.within(settings.batch).micro_batch
        device = base.unet.device
        self.photos = photos.for_training(settings, device)
        self.finds_subject = settings.use_mask and settings.find_subject and photos.masks is None and settings.steps > 0
        self.asks_domain = domain.info.fit_threshold is not None and settings.steps > 0
        self.notes: tuple[str, ...] = ()
        self.held = HeldWord(settings)
        info = domain.info
        encoder = _filled(domain.encoder.blank(), domain.encoder, device, settings.train_encoder)
        state_device = plan.state_device(device)
        offsets = _filled(domain.offsets.blank(), domain.offsets, state_device, settings.train_offsets)
        self.templates: Sequence[str] = info.templates
        self.words = WordModel.of(base.unet, base.text, encoder, info.word, info.scale, self.templates)
        assert self.photos.clip_features is not None
        self.clip_features = self.photos.clip_features
        self.prior: Prior | None = None
        if settings.prior > 0 and settings.steps > 0:
            asked = settings.batch, settings.steps, settings.prior_samples
            self.prior = Prior(self.words, self.photos.latents, self.clip_features, seed, *asked)
        self.tuned = TunedWeights(self.effective, offsets, settings.train_unet, self._mean_features(), method.unet)

    def _mean_features(self) -> Tensor:
        return self.clip_features.mean(dim=0, keepdim=True)

    def _static_levels(self) -> int:
        return len(self.photos) * math.ceil(STATIC_LEVELS / len(self.photos))

    def passes(self) -> Mapping[Phase, int]:
        looks = subject.PASSES if self.finds_subject else 0
        looks += math.ceil(photo_fit.LEVELS / self.micro_batch) if self.asks_domain else 0
        asked = self.prior.passes(self.micro_batch) if self.prior is not None else 0
        return {
            "subject": looks * len(self.photos) + asked,
            "word": math.ceil(self._static_levels() / self.micro_batch),
        }

    @torch.no_grad()
    def prepare(self, on_pass: OnPass) -> None:
        """Ask the untuned domain whether it knows what the photos show, where the subject is if nobody painted a mask, and
        what it draws beside it."""
        if self.asks_domain:
            self.notes = photo_fit.about_fit(self.domain.info, self.gains(on_pass))
        if self.finds_subject:
            masks = subject.find_subject(self.words, self.photos.latents, self.clip_features, self.seed, on_pass)
            self.photos = Photos(self.photos.latents, self.clip_features, masks)
        if self.prior is not None:
            self.prior.ask(self.micro_batch, on_pass)

    def gains(self, on_pass: OnPass = lambda: None) -> tuple[float, ...]:
        """How well the domain's word explains each photo, see ``photo_fit``; with :meth:`weights` lent to the UNet."""
        return photo_fit.photo_gains(self.words, self.photos, self.micro_batch, on_pass)

    def weights(self) -> Mapping[str, TrainedWeight]:
        return self.tuned.weights

    def groups(self) -> list[dict[str, Any]]:
        if not self.settings.train_encoder:
            return []
        rate = self.settings.learning_rate * self.settings.encoder_rate
        return [{"params": list(self.words.encoder.parameters()), "lr": rate}]

    def losses(self, sample: DiffusionSample) -> Tensor:
        chosen, masks = sample.photos, self.photos.masks
        # Gradients of several micro-batches add up anyway.
        separate = self.micro_batch < self.settings.batch
        parts = self.words.losses(
            self.photos.latents[chosen],
            self.clip_features[chosen],
            sample,
            None if masks is None else masks[chosen],
            self.settings.stop_feature_gradient,
            separate=separate,
        )
        self.held.see(sample.numbers, parts)
        losses = parts.per_sample(self.settings.regularization, self.settings.regularization_limit)
        if self.prior is not None:
            prior, rows = self.prior.losses(sample.numbers, separate)
            losses = losses.index_add(
                0, torch.tensor(rows, dtype=torch.long).to(losses.device), self.settings.prior * prior
            )
        return losses

    def context(self, z: Tensor, t: Tensor) -> Tensor:
        offset = self.words.offset(z, t, self.clip_features[:1])
        return self.words.contexts([0], self.words.at(self.settings.kept_of_word * offset))

    def concept(self, on_pass: OnPass) -> Concept:
        """The tuned concept, its fixed word averaged over noise levels of its own latents.

        Raises:
            TuningError: the word is not finite.
        """
        info, settings = self.domain.info, self.settings
        static = self._static_embedding(on_pass)
        encoder = self.words.encoder.eval().requires_grad_(False).cpu()
        base_fingerprint = self.base.fingerprint or fingerprint(self.effective)
        predictor = E4TPredictor(
            encoder,
            self._mean_features().cpu(),
            self.words.domain_word_embedding.cpu(),
            info.scale * settings.kept_of_word,
            self.domain.encoder,
        )
        return Concept(
            trigger=self.trigger,
            method=self.method,
            fingerprint=self._fingerprint(static, base_fingerprint),
            base_fingerprint=base_fingerprint,
            embedding=static[None],
            weights=(
                *domain_changes(self.domain),
                *self.tuned.differences(),
            ),
            settings=settings,
            seed=self.seed,
            predictor=predictor,
            word=info.word,
            start=predictor.domain_word_embedding,
            prediction=self.base.unet.prediction,
            domain_name=info.name,
            domain_fingerprint=self.domain.fingerprint,
            notes=(*self.notes, *self.held.told()),
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

    def _static_embedding(self, on_pass: OnPass) -> Tensor:
        """e_c averaged over noise levels of the concept's own latents, with the tuned weights: ``(D,)`` on the CPU."""
        latents, unet, levels = self.photos.latents, self.base.unet, self._static_levels()
        features, offsets = self._mean_features(), []
        for indices in chunks(levels, self.micro_batch):
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
            offsets.append(self.words.offset(z, sample.timesteps, features))
            on_pass()
        static = self.words.at(self.settings.kept_of_word * torch.cat(offsets).mean(dim=0))
        if not torch.isfinite(static).all():
            raise TuningError(
                f"The word embedding became NaN or infinite after {self.settings.steps} steps: lower the learning rate"
                f" ({self.settings.learning_rate:g}), or run the base model in a wider float type."
            )
        return static.cpu()


def check_fits(domain: Domain, unet: UNet, text: TextEncoder, clip_features: Tensor | None) -> None:
    """Check that a domain can be used on a base, with such features ``(n, L, C)`` of photos.

    Raises:
        DomainMismatchError: the domain was made for another base.
        TuningError: it reads other features.
    """
    info, encoder = domain.info, domain.encoder
    check_base(info, text.width, unet.prediction, unet.feature_width, unet.attention_projections())
    given = None if clip_features is None else tuple(clip_features.shape[1:])
    if given != (encoder.layers, encoder.clip_width):
        raise TuningError(
            f"The photos' CLIP features are {given} (layers, width), but domain {info.name!r} reads"
            f" {(encoder.layers, encoder.clip_width)}: use the image backbone {info.backbone.architecture!r}."
        )


def domain_changes(domain: Domain) -> tuple[Scaled, ...]:
    """What all concepts of a domain change alike: its untuned offsets, on the CPU."""
    shared = domain.offsets.shared()
    return tuple(Scaled(name, p.cpu(), q.cpu(), domain.fingerprint) for name, (p, q) in shared.items())


def _filled(copy: Module, source: nn.Module, device: torch.device, trains: bool) -> Module:
    state = {key: value.detach().to(device, torch.float32, copy=True) for key, value in source.state_dict().items()}
    copy.load_state_dict(state, assign=True)
    return copy.requires_grad_(trains)
