"""The encoder of mkshing/e4t-diffusion (MIT, 2023), whose published checkpoint is converted by ``commands.convert``.

Where the paper's encoder reads the [CLS] vector of several layers, this one reads tokens x_i of the LAST layer: the
normalized [CLS] and the patch tokens 1, 3, 5, … It joins the UNet features before the first linears:

    u = unet_out( LeakyReLU( unet_in(F) ) )
    E(I_c, F) = final( LeakyReLU( mean_i first_i( feature(x_i (+) u) ) ) )
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .concept_encoder import OffsetEncoder
from .seeded_linear import seeded_linear


class PatchTokenEncoder(OffsetEncoder):
    """Predicts a word offset from tokens of the backbone's last layer.

    SD 1.x with ViT-H/14: 129 tokens of width 1280, features 10880 wide, words 768 wide: 231.3 M parameters.

    Args:
        layers: L, the number of tokens that are read.
        clip_width: C, the width of a token.
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
        self.unet_in = seeded_linear(feature_width, clip_width, generator, device)
        self.unet_out = seeded_linear(clip_width, clip_width, generator, device)
        self.feature = seeded_linear(2 * clip_width, clip_width, generator, device)
        self.first = torch.nn.ModuleList(
            seeded_linear(clip_width, clip_width, generator, device) for _ in range(layers)
        )
        self.final = seeded_linear(clip_width, word_width, generator, device)

    def forward(self, clip_features: Tensor, unet_features: Tensor) -> Tensor:
        """Offsets E ``(B, D)``.

        Args:
            clip_features: ``(B, L, C)``, or ``(1, L, C)`` for one image seen at B noise levels.
            unet_features: ``(B, feature_width)``, the spatial means of ``UNet.features``.

        Raises:
            ValueError: a width or the number of tokens is not the encoder's.
        """
        self.check(clip_features, unet_features)
        unet = self.unet_out(F.leaky_relu(self.unet_in(unet_features)))
        # One linear over two joined vectors is a sum of two: the tokens' half is computed once for all noise levels.
        of_token, of_unet = self.feature.weight.split(self.clip_width, dim=1)
        tokens = F.linear(clip_features, of_token)
        rest = F.linear(unet, of_unet, self.feature.bias)
        image = torch.stack([first(tokens[:, index] + rest) for index, first in enumerate(self.first)]).mean(dim=0)
        return self.final(F.leaky_relu(image))
