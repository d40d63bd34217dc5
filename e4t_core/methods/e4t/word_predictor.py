"""What refines an E4T concept's word while it is drawn (the paper's section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .concept_encoder import OffsetEncoder


@dataclass(frozen=True, eq=False)
class E4TPredictor:
    """``e_c = e_d + s·E(photo, F)``; the core's ``WordPredictor``.

    Attributes:
        encoder: the tuned concept encoder, in eval mode and frozen.
        clip_features: ``(1, L, C)``, the mean over the photos.
        domain_word_embedding: e_d, ``(D,)``.
        scale: s, times the strength of the word that its settings keep.
        untuned: the domain's own encoder, which a compact file leaves out; none if it is not at hand.
    """

    encoder: OffsetEncoder
    clip_features: Tensor
    domain_word_embedding: Tensor
    scale: float
    untuned: OffsetEncoder | None = None

    @property
    def network(self) -> OffsetEncoder:
        """The encoder."""
        return self.encoder

    @property
    def feature_width(self) -> int:
        """The encoder's."""
        return self.encoder.feature_width

    def word(self, unet_features: Tensor) -> Tensor:
        """e_c ``(B, D)`` for UNet features F ``(B, feature_width)`` on any device."""
        offset = self.encoder(self.clip_features.to(unet_features.device), unet_features)
        return self.domain_word_embedding.to(offset.device) + self.scale * offset
