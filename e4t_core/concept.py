"""A concept: all that tuning learned about one photo, and all that sampling needs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .methods.e4t.concept_encoder import OffsetEncoder
from .presets import TuningSettings


@dataclass(frozen=True, eq=False)
class Concept:
    """The result of :func:`e4t_core.tuning.tune`. All tensors are float32 on the CPU and without gradients.

    A MODEL that draws concepts holds each domain's offset once, as ``W0 * P Q^T`` from ``domain_factors``, plus
    each concept's ``weight_differences``: the sum is this concept's tuned weights.

    Attributes:
        word: the word that stands for the concept in a prompt ("S*").
        domain_name: name of the domain it was tuned in.
        domain_fingerprint: content hash of that domain.
        fingerprint: content hash of what was learned, the word and how it is sampled left out; equal inputs and seed give equal hashes on a CPU.
        base_fingerprint: content hash of the effective base weights it was tuned on.
        domain_word_embedding: e_d, ``(D,)``.
        scale: s in ``e_c = e_d + s·E``.
        encoder: the tuned concept encoder, in eval mode and frozen.
        clip_features: ``(1, L, C)``, the mean over the photos.
        static_embedding: ``(D,)``, e_c averaged over noise levels of the concept's own latent(s).
        domain_factors: P ``(M, 3)`` and Q ``(N, 3)`` of the UNTUNED domain's offsets, by canonical name.
        weight_differences: tuned weight - (base + domain offset), by canonical name; only tensors that changed.
        settings: how it was tuned, and how it is to be sampled.
        seed: of noise, timesteps and templates.
        losses: mean loss of every optimiser step.
    """

    word: str
    domain_name: str
    domain_fingerprint: str
    fingerprint: str
    base_fingerprint: str
    domain_word_embedding: Tensor
    scale: float
    encoder: OffsetEncoder
    clip_features: Tensor
    static_embedding: Tensor
    domain_factors: dict[str, tuple[Tensor, Tensor]]
    weight_differences: dict[str, Tensor]
    settings: TuningSettings
    seed: int
    losses: tuple[float, ...] = ()

    def word_embedding(self, unet_features: Tensor) -> Tensor:
        """``e_c = e_d + s·E(photo, F)``, ``(B, D)``, for UNet features F ``(B, feature_width)`` on any device."""
        offset = self.encoder(self.clip_features.to(unet_features.device), unet_features)
        return self.domain_word_embedding.to(offset.device) + self.scale * offset
