"""One-shot tuning: a photo, or a few of one thing, becomes a concept (the paper's section 3.4)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from .concept import Concept
from .fingerprint import fingerprint
from .methods.e4t import subject
from .methods.e4t.concept_encoder import OffsetEncoder
from .methods.e4t.domain import Domain
from .methods.e4t.domain_info import check_base
from .methods.e4t.tuned_weights import TunedWeights
from .methods.e4t.weight_offsets import Offsets
from .objective import diffusion_losses, draw_samples, inner_masks, predict_offset
from .presets import TuningSettings
from .unet import TextEncoder, UNet

logger = logging.getLogger(__name__)

# Noise levels over which the static word embedding is averaged, at least.
STATIC_LEVELS = 16

Phase = Literal["subject", "tuning", "word"]
Module = TypeVar("Module", bound=nn.Module)


class TuningError(ValueError):
    """Tuning that cannot go on; the message is one sentence that says why and what to change."""


@dataclass(frozen=True, eq=False)
class ConceptPhotos:
    """n photos of ONE concept.

    Attributes:
        latents: ``(n, 4, h, w)``, VAE posterior means in the UNet's scale.
        clip_features: ``(n, L, C)``, [CLS] vectors of the image backbone.
        masks: ``(n, 1, H, W)`` in 0-1, 1 = learn here; or none.

    Raises:
        TuningError: no photo, shapes that do not belong together, or values that are not finite.
    """

    latents: Tensor
    clip_features: Tensor
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        if self.latents.ndim != 4 or 0 in self.latents.shape:
            raise TuningError(f"Latents of shape {tuple(self.latents.shape)} hold no photo: give at least one image.")
        count = self.latents.shape[0]
        if self.clip_features.ndim != 3 or self.clip_features.shape[0] != count:
            raise TuningError(
                f"CLIP features of shape {tuple(self.clip_features.shape)} do not belong to {count} photos: give one"
                " set per photo."
            )
        if self.masks is not None and (self.masks.ndim != 4 or tuple(self.masks.shape[:2]) != (count, 1)):
            raise TuningError(
                f"Masks of shape {tuple(self.masks.shape)} do not belong to {count} photos: give one mask per photo."
            )
        for name in ("latents", "clip_features", "masks"):
            tensor = getattr(self, name)
            if tensor is not None and not torch.isfinite(tensor).all():
                raise TuningError(f"The photos' {name} hold NaN or infinity: check the image, the VAE and the mask.")


@dataclass(frozen=True)
class StepReport:
    """Where a tuning stands, after every micro-batch.

    Attributes:
        phase: "subject" while the subject is looked for, if it is; "tuning"; "word" while the static word is averaged.
        step: optimiser step under way or just done, 1..steps; 0 if there are none yet.
        steps: number of optimiser steps.
        micro: micro-batch just done within the step (or another phase), 1..micros.
        micros: micro-batches per step (or in another phase).
        done: micro-batches done since the start, all phases together.
        total: micro-batches of the whole run.
        losses: losses of the finished steps.
        masks: ``(n, 1, h, w)``, by how much each latent cell of the photos is learned; none: all alike, or not known yet.
    """

    phase: Phase
    step: int
    steps: int
    micro: int
    micros: int
    done: int
    total: int
    losses: tuple[float, ...]
    masks: Tensor | None = None


OnStep = Callable[[StepReport], object]


def tune(
    unet: UNet,
    text: TextEncoder,
    domain: Domain,
    photos: ConceptPhotos,
    settings: TuningSettings,
    seed: int,
    word: str = "S*",
    on_step: OnStep | None = None,
    *,
    base_fingerprint: str | None = None,
) -> Concept:
    """Tune the domain's encoder and offsets and the UNet's weights to the photo(s) by AdamW.

    It trains float32 copies; ``unet``, ``text``, ``domain`` and ``photos`` are never changed, whatever happens. It may
    be called inside ``torch.inference_mode()``, which it leaves for its own work. On a CPU, equal inputs and seed
    give the same concept bit for bit; the micro-batch size changes it by accumulation order only.

    Args:
        unet, text: the base as it stands, without other E4T concepts.
        domain: what was pre-trained.
        photos: what is to be learned; moved to the UNet's device.
        settings: how; 0 steps leave the encoder's first answer ("encoder only").
        seed: of noise, timesteps and templates.
        word: what the concept is called in prompts.
        on_step: called after every micro-batch; whatever it raises ends the run and passes through.
        base_fingerprint: content hash of the base's effective weights, if known; else it is computed here.

    Raises:
        DomainMismatchError: the domain was made for another base.
        WordError: the domain word is not one token in this text encoder.
        TuningError: the photos do not fit the encoder, or the loss is no longer finite.
    """
    check_base(domain.info, text.width, unet.prediction, unet.feature_width, unet.attention_projections())
    expected = (domain.encoder.layers, domain.encoder.clip_width)
    if tuple(photos.clip_features.shape[1:]) != expected:
        raise TuningError(
            f"The photos' CLIP features are {tuple(photos.clip_features.shape[1:])} (layers, width), but domain"
            f" {domain.info.name!r} reads {expected}: use the image backbone {domain.info.backbone.architecture!r}."
        )
    with torch.inference_mode(False), torch.enable_grad():
        return _Tuning(unet, text, domain, photos, settings, seed, on_step).run(word, base_fingerprint)


class _Tuning:
    """The state of one run: private copies of all that trains, and clones of all that autograd must save."""

    def __init__(
        self,
        unet: UNet,
        text: TextEncoder,
        domain: Domain,
        photos: ConceptPhotos,
        settings: TuningSettings,
        seed: int,
        on_step: OnStep | None,
    ) -> None:
        self.unet, self.text, self.domain = unet, text, domain
        self.settings, self.seed, self.on_step = settings, seed, on_step
        self.base = unet.parameters()
        device = next(iter(self.base.values())).device

        def private(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device, torch.float32, copy=True)

        self.latents, self.clip_features = private(photos.latents), private(photos.clip_features)
        self.masks = None
        self.finds_subject = settings.use_mask and settings.find_subject and photos.masks is None and settings.steps > 0
        if photos.masks is not None and settings.use_mask:
            size = (self.latents.shape[-2], self.latents.shape[-1])
            self.masks = inner_masks(private(photos.masks), size, settings.mask_threshold)
        self.domain_word_embedding = private(text.word(domain.info.word))
        self.empty = private(text.empty())
        self.templates = domain.info.templates
        self.encoder = _copy_encoder(domain.encoder, device, settings.train_encoder)
        self.offsets = _copy_offsets(domain.offsets, device, settings.train_offsets)
        self.weights = TunedWeights(
            self.base,
            self.offsets,
            settings.train_offsets,
            settings.train_unet,
            self.clip_features.mean(dim=0, keepdim=True),
        )
        count = self.latents.shape[0]
        self.micros = math.ceil(settings.batch / settings.micro_batch)
        self.static_count = count * math.ceil(STATIC_LEVELS / count)
        self.static_micros = math.ceil(self.static_count / settings.micro_batch)
        self.subject_passes = count * subject.PASSES if self.finds_subject else 0
        self.done = 0
        self.losses: list[float] = []

    def run(self, word: str, base_fingerprint: str | None) -> Concept:
        info = self.domain.info
        if self.finds_subject:
            self.masks = self._find_subject()
        if self.settings.steps > 0:
            self._train()
        static = self._static_embedding()
        encoder = self.encoder.eval().requires_grad_(False).cpu()
        factors = {name: (p.cpu(), q.cpu()) for name, (p, q) in self.domain.offsets.shared().items()}
        clip_features = self.clip_features.mean(dim=0, keepdim=True).cpu()
        base_fingerprint = base_fingerprint or fingerprint(self.base)
        inputs = {"latents": self.latents, "photos": self.clip_features, "e_d": self.domain_word_embedding}
        inputs |= {"static": static} | ({} if self.masks is None else {"masks": self.masks})
        described = json.dumps([self.settings.learned_with(), self.seed, info.scale], sort_keys=True)
        return Concept(
            word=word,
            domain_name=info.name,
            domain_fingerprint=self.domain.fingerprint,
            # Its tuned weights follow from all this; hashing gigabytes of them would tell no more.
            fingerprint=fingerprint(
                inputs | encoder.state_dict(), described, self.domain.fingerprint, base_fingerprint
            ),
            base_fingerprint=base_fingerprint,
            domain_word_embedding=self.domain_word_embedding.cpu(),
            scale=info.scale,
            encoder=encoder,
            clip_features=clip_features,
            static_embedding=static,
            domain_factors=factors,
            weight_differences=self.weights.differences(),
            settings=self.settings,
            seed=self.seed,
            losses=tuple(self.losses),
        )

    def _train(self) -> None:
        settings = self.settings
        groups: list[dict[str, Any]] = [{"params": list(self.weights.parameters)}] if self.weights.parameters else []
        if settings.train_encoder:
            rate = settings.learning_rate * settings.encoder_rate
            groups.append({"params": list(self.encoder.parameters()), "lr": rate})
        optimizer = torch.optim.AdamW(
            groups,
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        for step in range(settings.steps):
            loss = 0.0
            for micro, indices in enumerate(_chunks(settings.batch, settings.micro_batch)):
                loss += self._micro_batch(step, indices)
                if micro + 1 < self.micros:
                    self._report("tuning", step + 1, micro + 1, self.micros)
            if not math.isfinite(loss):
                raise TuningError(
                    f"The loss became {loss} in step {step + 1} of {settings.steps}: lower the learning rate"
                    f" ({settings.learning_rate:g}), or run the base model in a wider float type."
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.losses.append(loss)
            self._report("tuning", step + 1, self.micros, self.micros)
        logger.info("Tuned %d steps: loss %.4f -> %.4f.", settings.steps, self.losses[0], self.losses[-1])

    def _micro_batch(self, step: int, indices: range) -> float:
        """Add the gradients of some samples of a step's batch; returns their share of the step's loss."""
        settings = self.settings
        start = step * settings.batch
        sample = draw_samples(
            self.seed,
            range(start + indices.start, start + indices.stop),
            latent_shape=self.latents.shape[1:],
            batch=settings.batch,
            photos=self.latents.shape[0],
            templates=len(self.templates),
            timesteps=self.unet.schedule.timesteps,
        )
        device = self.latents.device
        photos = sample.photos.to(device)
        with self.unet.using(self.weights.effective()):
            parts = diffusion_losses(
                self.unet,
                self.text,
                self.encoder,
                latents=self.latents[photos],
                clip_features=self.clip_features[photos],
                timesteps=sample.timesteps.to(device),
                noise=sample.noise.to(device),
                templates=[self.templates[number] for number in sample.templates],
                domain_word_embedding=self.domain_word_embedding,
                scale=self.domain.info.scale,
                empty=self.empty,
                masks=None if self.masks is None else self.masks[photos],
                stop_feature_gradient=settings.stop_feature_gradient,
            )
            # Weighted by its share of the batch, so that all micro-batch sizes give the batch's gradient.
            loss = parts.total(settings.regularization) * (len(indices) / settings.batch)
            loss.backward()
        return float(loss.detach())

    @torch.no_grad()
    def _find_subject(self) -> Tensor:
        """Masks ``(n, 1, h, w)`` by the untuned domain, for the photos that have none."""
        with self.unet.using(self.weights.effective()):
            return subject.find_subject(
                self.unet,
                self.text,
                self.encoder,
                latents=self.latents,
                clip_features=self.clip_features,
                templates=self.templates,
                domain_word_embedding=self.domain_word_embedding,
                scale=self.domain.info.scale,
                empty=self.empty,
                seed=self.seed,
                on_pass=lambda: self._report("subject", 0, self.done + 1, self.subject_passes),
            )

    @torch.no_grad()
    def _static_embedding(self) -> Tensor:
        """e_c averaged over noise levels of the concept's own latents, with the tuned weights: ``(D,)`` on the CPU."""
        device = self.latents.device
        clip_features = self.clip_features.mean(dim=0, keepdim=True)
        offsets = []
        weights = self.weights.effective()
        for micro, indices in enumerate(_chunks(self.static_count, self.settings.micro_batch)):
            sample = draw_samples(
                self.seed,
                indices,
                latent_shape=self.latents.shape[1:],
                batch=self.static_count,
                photos=self.latents.shape[0],
                timesteps=self.unet.schedule.timesteps,
                stream="static",
            )
            t = sample.timesteps.to(device)
            z = self.unet.schedule.add_noise(self.latents[sample.photos.to(device)], sample.noise.to(device), t)
            with self.unet.using(weights):
                offsets.append(predict_offset(self.unet, self.encoder, z, t, clip_features, self.empty))
            self._report("word", self.settings.steps, micro + 1, self.static_micros)
        offset = torch.cat(offsets).mean(dim=0)
        static = self.domain_word_embedding + self.domain.info.scale * offset
        if not torch.isfinite(static).all():
            raise TuningError(
                f"The word embedding became NaN or infinite after {self.settings.steps} steps: lower the learning rate"
                f" ({self.settings.learning_rate:g}), or run the base model in a wider float type."
            )
        return static.cpu()

    def _report(self, phase: Phase, step: int, micro: int, micros: int) -> None:
        self.done += 1
        total = self.subject_passes + self.settings.steps * self.micros + self.static_micros
        if self.on_step is not None:
            self.on_step(
                StepReport(
                    phase, step, self.settings.steps, micro, micros, self.done, total, tuple(self.losses), self.masks
                )
            )


def _chunks(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def _copy_encoder(encoder: OffsetEncoder, device: torch.device, trains: bool) -> OffsetEncoder:
    return _fill(encoder.blank(), encoder, device, trains)


def _copy_offsets(offsets: Offsets, device: torch.device, trains: bool) -> Offsets:
    return _fill(offsets.blank(), offsets, device, trains)


def _fill(copy: Module, source: nn.Module, device: torch.device, trains: bool) -> Module:
    state = {key: value.detach().to(device, torch.float32, copy=True) for key, value in source.state_dict().items()}
    copy.load_state_dict(state, assign=True)
    return copy.requires_grad_(trains)
