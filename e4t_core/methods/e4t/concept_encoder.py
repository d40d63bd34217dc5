"""The concept encoder: from a photo's CLIP features and the UNet's view of the noisy latent to a word offset.

The paper's section 3.1:

    E(I_c, F) = final( LeakyReLU(mean_l first_l(CLS_l)) (+) LeakyReLU(F) ),   e_c = e_d + s·E

Other networks with the same inputs and output are :class:`OffsetEncoder` too (:mod:`.patch_token_encoder`).
"""

from __future__ import annotations

from collections.abc import Mapping

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

    @torch.no_grad()
    def difference_from(self, untuned: OffsetEncoder, clip_features: Tensor) -> dict[str, Tensor]:
        """What ``untuned.plus(...)`` needs to give this encoder's offsets for ONE photo: float32, by name.

        A variant may leave out what makes no difference to this photo.

        Args:
            untuned: of the same kind and shapes, on the same device.
            clip_features: ``(1, L, C)`` of the photo.
        """
        before = untuned.state_dict()
        return {key: value.float() - before[key].float() for key, value in self.state_dict().items()}

    def difference_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what :meth:`difference_from` gives, by name."""
        return {key: tuple(value.shape) for key, value in self.state_dict().items()}

    @torch.no_grad()
    def plus(self, difference: Mapping[str, Tensor]) -> OffsetEncoder:
        """A copy with a difference added, in eval mode and frozen.

        Raises:
            ValueError: the difference is of another encoder.
        """
        shapes = {name: tuple(value.shape) for name, value in difference.items()}
        if shapes != self.difference_shapes():
            raise ValueError(
                "The encoder's difference does not fit this domain: its parts are"
                f" {_shown_shapes(shapes)} in place of {_shown_shapes(self.difference_shapes())}."
            )
        changed = self.blank()
        state = {key: value.detach().float().clone() for key, value in self.state_dict().items()}
        self._add(state, difference)
        changed.load_state_dict(state, assign=True)
        return changed.eval().requires_grad_(False)

    def _add(self, state: dict[str, Tensor], difference: Mapping[str, Tensor]) -> None:
        for key, value in difference.items():
            state[key] += value.to(state[key].device)

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


def _shown_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    first = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:2])
    return f"{first} (of {len(shapes)})" if len(shapes) > 2 else first or "none"


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

    @torch.no_grad()
    def difference_from(self, untuned: OffsetEncoder, clip_features: Tensor) -> dict[str, Tensor]:
        """For one photo all that the [CLS] vectors add is a constant of D numbers, and that may be a part of the bias.

        So of 35.6 M numbers D·(feature_width + 1) are left: ``final.bias``, and ``final.features``, the part of
        ``final.weight`` that reads the UNet.
        """
        assert isinstance(untuned, ConceptEncoder)
        weight = (self.final.weight - untuned.final.weight)[:, self.clip_width :]
        bias = self._of_photo(clip_features) - untuned._of_photo(clip_features)
        return {"final.features": weight.detach(), "final.bias": bias}

    def difference_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"final.features": (self.word_width, self.feature_width), "final.bias": (self.word_width,)}

    def _add(self, state: dict[str, Tensor], difference: Mapping[str, Tensor]) -> None:
        device = state["final.bias"].device
        state["final.weight"][:, self.clip_width :] += difference["final.features"].to(device)
        state["final.bias"] += difference["final.bias"].to(device)

    def _image(self, clip_features: Tensor) -> Tensor:
        """``LeakyReLU(mean_l first_l(CLS_l))``, ``(B, C)``."""
        image = torch.stack([first(clip_features[:, layer]) for layer, first in enumerate(self.first)]).mean(dim=0)
        return F.leaky_relu(image)

    def _of_photo(self, clip_features: Tensor) -> Tensor:
        """What one photo adds to its offsets whatever the UNet sees: ``(D,)``."""
        weight = self.final.weight[:, : self.clip_width]
        return F.linear(self._image(clip_features), weight, self.final.bias)[0]

    def forward(self, clip_features: Tensor, unet_features: Tensor) -> Tensor:
        """Offsets E ``(B, D)``.

        Args:
            clip_features: ``(B, L, C)``, or ``(1, L, C)`` for one image seen at B noise levels.
            unet_features: ``(B, feature_width)``, the spatial means of ``UNet.features``.

        Raises:
            ValueError: a width or the number of layers is not the encoder's.
        """
        self.check(clip_features, unet_features)
        image = self._image(clip_features).expand(unet_features.shape[0], -1)
        return self.final(torch.cat([image, F.leaky_relu(unet_features)], dim=1))
