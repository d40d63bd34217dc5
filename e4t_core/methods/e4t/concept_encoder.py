"""The concept encoder: from a photo's CLIP features and the UNet's view of the noisy latent to a word offset.

The paper's section 3.1:

    E(I_c, F) = final( LeakyReLU(mean_l first_l(CLS_l)) (+) LeakyReLU(F) ),   e_c = e_d + s·E

Other networks with the same inputs and output are :class:`OffsetEncoder` too (:mod:`.patch_token_encoder`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .seeded_linear import seeded_linear


class OffsetEncoder(nn.Module):
    """Predicts the OFFSET of a concept's word embedding from its domain's word embedding: what all variants share.

    ``encoder(clip_features, unet_features)`` gives E ``(B, D)``.

    Args:
        layers: L, the number of image vectors that are read.
        clip_width: C, the width of such a vector.
        feature_width: width of the UNet features F.
        word_width: D, the width of a word embedding.
    """

    def __init__(self, layers: int, clip_width: int, feature_width: int, word_width: int) -> None:
        super().__init__()
        self.layers, self.clip_width = layers, clip_width
        self.feature_width, self.word_width = feature_width, word_width

    def blank(self) -> OffsetEncoder:
        """A network of the same kind and shapes on the "meta" device, to be filled with a state."""
        return type(self)(self.layers, self.clip_width, self.feature_width, self.word_width, device="meta")  # type: ignore[call-arg]

    def check(self, clip_features: Tensor, unet_features: Tensor) -> None:
        """Check the shapes ``(B or 1, L, C)`` and ``(B, feature_width)``.

        Raises:
            ValueError: a width or the number of vectors is not the encoder's.
        """
        if clip_features.ndim != 3 or clip_features.shape[1:] != (self.layers, self.clip_width):
            raise ValueError(
                f"CLIP features of shape {tuple(clip_features.shape)} do not fit this encoder, which reads"
                f" {self.layers} vectors of width {self.clip_width}."
            )
        if unet_features.ndim != 2 or unet_features.shape[1] != self.feature_width:
            raise ValueError(
                f"UNet features of shape {tuple(unet_features.shape)} do not fit this encoder, which was built for"
                f" width {self.feature_width}."
            )


class ConceptEncoder(OffsetEncoder):
    """The paper's encoder.

    SD 1.x with ViT-H/14: 16 layers of width 1280, features 10880 wide, words 768 wide: 35.6 M parameters.

    Args:
        layers: L, the number of CLIP layers whose [CLS] vector is read.
        clip_width: C, the width of a [CLS] vector.
        feature_width: width of the UNet features F.
        word_width: D, the width of a word embedding.
        generator: random stream of the first weights; a fixed one by default.
        device: where the parameters live; "meta" for shapes only.
    """

    def __init__(
        self,
        layers: int,
        clip_width: int,
        feature_width: int,
        word_width: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(layers, clip_width, feature_width, word_width)
        generator = generator or torch.Generator().manual_seed(0)
        self.first = nn.ModuleList(seeded_linear(clip_width, clip_width, generator, device) for _ in range(layers))
        self.final = seeded_linear(clip_width + feature_width, word_width, generator, device)

    def forward(self, clip_features: Tensor, unet_features: Tensor) -> Tensor:
        """Offsets E ``(B, D)``.

        Args:
            clip_features: ``(B, L, C)``, or ``(1, L, C)`` for one image seen at B noise levels.
            unet_features: ``(B, feature_width)``, the spatial means of ``UNet.features``.

        Raises:
            ValueError: a width or the number of layers is not the encoder's.
        """
        self.check(clip_features, unet_features)
        image = torch.stack([first(clip_features[:, layer]) for layer, first in enumerate(self.first)]).mean(dim=0)
        image = F.leaky_relu(image).expand(unet_features.shape[0], -1)
        return self.final(torch.cat([image, F.leaky_relu(unet_features)], dim=1))
