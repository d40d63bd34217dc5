"""The word of E4T (the paper's sections 3.1 and 3.3), for pre-training, tuning and everything that looks at a word:

e_c = e_d + s·E(photo, F(z_t, t))
L   = diffusion loss  +  lambda · mean_over_batch ||E||²
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...diffusion import DiffusionSample, denoising_errors
from ...separate_backward import separate_backward
from ...unet import TextEncoder, UNet
from .concept_encoder import OffsetEncoder


@dataclass(frozen=True, eq=False)
class LossParts:
    """The loss of B samples in its parts; kept per sample, so that micro-batches add up to the batch exactly.

    Attributes:
        diffusion: ``(B,)`` (mask-weighted) mean squared error of the prediction.
        offset: ``(B,)`` ||E||², the squared length of the predicted word OFFSET.
    """

    diffusion: Tensor
    offset: Tensor

    def per_sample(self, regularization: float, limit: float = 0.0) -> Tensor:
        """``diffusion + lambda · ||E||²``, ``(B,)``.

        Args:
            regularization: lambda.
            limit: the most that each sample's penalty may be, as a share of its diffusion loss: a larger one gets a smaller
                lambda. 0: no limit.
        """
        penalty = regularization * self.offset
        return self.diffusion + (self.within(penalty, limit) * penalty if limit else penalty)

    def within(self, penalty: Tensor, limit: float) -> Tensor:
        """What to multiply each sample's penalty ``(B,)`` by so that it is within the limit: 0-1, without gradients."""
        allowed = limit * self.diffusion.detach()
        return torch.where(penalty.detach() > allowed, allowed / penalty.detach(), 1.0)

    def total(self, regularization: float) -> Tensor:
        """``mean(diffusion) + lambda · mean(||E||²)``."""
        return self.diffusion.mean() + regularization * self.offset.mean()


@dataclass(frozen=True, eq=False)
class WordModel:
    """What gives a photo's word at a noise level, and the loss of drawing the photo with it.

    Attributes:
        unet, text: the base; call everything inside ``unet.using(...)`` the weights that are meant.
        encoder: predicts E.
        domain_word_embedding: e_d ``(D,)``.
        scale: s.
        empty: context ``(1, L, D)`` of the empty prompt.
        templates: prompts, each with "{}" once where the word stands.
    """

    unet: UNet
    text: TextEncoder
    encoder: OffsetEncoder
    domain_word_embedding: Tensor
    scale: float
    empty: Tensor
    templates: Sequence[str]

    @classmethod
    def of(
        cls, unet: UNet, text: TextEncoder, encoder: OffsetEncoder, word: str, scale: float, templates: Sequence[str]
    ) -> WordModel:
        """With private copies of the domain word's embedding and the empty prompt's context, on the UNet's device.

        Raises:
            WordError: ``word`` is not one token.
        """
        device = unet.device

        def private(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device, torch.float32, copy=True)

        return cls(unet, text, encoder, private(text.word(word)), scale, private(text.empty()), tuple(templates))

    def with_encoder(self, encoder: OffsetEncoder) -> WordModel:
        """The same with another encoder."""
        return dataclasses.replace(self, encoder=encoder)

    def offset(self, z: Tensor, t: Tensor, clip_features: Tensor, stop_gradient: bool = False) -> Tensor:
        """E ``(B, D)`` for noisy latents ``z`` ``(B, 4, h, w)`` at ``t`` ``(B,)``.

        F comes from a pass with the EMPTY prompt and the weights in use.

        Args:
            clip_features: ``(B or 1, L, C)`` of the photo.
            stop_gradient: cuts the gradients through that pass.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not stop_gradient):
            features = self.unet.features(z, t, self.empty.expand(z.shape[0], -1, -1))
        return self.encoder(clip_features, features)

    def at(self, offset: Tensor) -> Tensor:
        """``e_d + s·E``: word embeddings ``(B, D)`` for offsets ``(B, D)``."""
        return self.domain_word_embedding + self.scale * offset

    def word(self, z: Tensor, t: Tensor, clip_features: Tensor) -> Tensor:
        """e_c ``(B, D)``, see :meth:`offset`."""
        return self.at(self.offset(z, t, clip_features))

    def contexts(self, templates: Sequence[int], words: Tensor) -> Tensor:
        """Contexts ``(B, L, D)`` of the templates with these numbers and the words ``(B, D)``."""
        return self.text.encode([self.templates[number] for number in templates], words)

    def losses(
        self,
        latents: Tensor,
        clip_features: Tensor,
        sample: DiffusionSample,
        masks: Tensor | None = None,
        stop_feature_gradient: bool = False,
        separate: bool = False,
    ) -> LossParts:
        """The loss of B samples; call its backward inside ``unet.using(...)``, too.

        Args:
            latents: ``(B, 4, h, w)``, clean, in the UNet's scale.
            clip_features: ``(B, L, C)``.
            sample: on the latents' device.
            masks: ``(B, 1, H, W)`` in 0-1, 1 = learn here.
            stop_feature_gradient: see :meth:`offset`.
            separate: the denoising pass has a backward pass of its own, see ``separate_backward``.
        """
        z = self.unet.schedule.add_noise(latents, sample.noise, sample.timesteps)
        offset = self.offset(z, sample.timesteps, clip_features, stop_feature_gradient)

        def errors_of(offset: Tensor) -> Tensor:
            context = self.contexts(sample.templates, self.at(offset))
            return denoising_errors(self.unet, latents, sample, context, masks, z)

        separate = separate and offset.requires_grad and not stop_feature_gradient
        errors = separate_backward(errors_of, offset) if separate else errors_of(offset)
        return LossParts(errors, offset.float().square().sum(dim=1))
