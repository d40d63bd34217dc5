"""What is minimised, in pre-training and in one-shot tuning alike (the paper's section 3.3):

    L = mean((target - prediction)² [· mask / mean(mask)])  +  lambda · mean_over_batch ||E||²

and from where a sample's randomness comes: everything is drawn from (seed, global sample index) by local streams, so
micro-batches, processes and resumed runs see the same samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .methods.e4t.concept_encoder import OffsetEncoder
from .unet import TextEncoder, UNet


@dataclass(frozen=True, eq=False)
class DiffusionSample:
    """The random part of B samples, on the CPU.

    Attributes:
        timesteps: ``(B,)`` int64, 0..T-1.
        noise: ``(B, 4, h, w)`` float32, standard normal.
        templates: B numbers of prompt templates.
        photos: ``(B,)`` int64, numbers of photos (tuning) or of data rows (pre-training).
    """

    timesteps: Tensor
    noise: Tensor
    templates: tuple[int, ...]
    photos: Tensor


def draw_samples(
    seed: int,
    indices: Iterable[int],
    *,
    latent_shape: Sequence[int],
    batch: int,
    photos: int = 1,
    templates: int = 1,
    timesteps: int = 1000,
    stream: str = "tuning",
) -> DiffusionSample:
    """Draw the samples with these global indices; sample i is the same whatever it is drawn together with.

    Timesteps are stratified: the k-th sample of an effective batch takes its timestep from the k-th of ``batch``
    equal parts of [0, T), so that every batch covers the schedule. Photos take turns if a batch can hold them all,
    else they are drawn evenly.

    Args:
        seed: of the run.
        indices: global sample indices; optimiser step n of a run holds ``n * batch`` to ``(n + 1) * batch - 1``.
        latent_shape: (4, h, w).
        batch: size of the EFFECTIVE batch.
        photos, templates, timesteps: how many there are to choose from.
        stream: name of the purpose, to keep two uses of one seed apart.
    """
    steps, noise, chosen_templates, chosen_photos = [], [], [], []
    for index in indices:
        digest = hashlib.sha256(f"{stream}/{seed}/{index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        within = float(torch.rand((), generator=generator, dtype=torch.float64))
        steps.append(min(int((index % batch + within) / batch * timesteps), timesteps - 1))
        chosen_templates.append(int(torch.randint(templates, (), generator=generator)))
        drawn = int(torch.randint(photos, (), generator=generator))
        chosen_photos.append(index % photos if photos <= batch else drawn)
        noise.append(torch.randn(tuple(latent_shape), generator=generator))
    return DiffusionSample(
        torch.tensor(steps), torch.stack(noise), tuple(chosen_templates), torch.tensor(chosen_photos)
    )


@dataclass(frozen=True, eq=False)
class LossParts:
    """The loss of B samples in its parts; kept per sample, so that micro-batches add up to the batch exactly.

    Attributes:
        diffusion: ``(B,)`` (mask-weighted) mean squared error of the prediction.
        offset: ``(B,)`` ||E||², the squared length of the predicted word OFFSET.
    """

    diffusion: Tensor
    offset: Tensor

    def total(self, regularization: float) -> Tensor:
        """``mean(diffusion) + lambda · mean(||E||²)``."""
        return self.diffusion.mean() + regularization * self.offset.mean()


def predict_offset(
    unet: UNet,
    encoder: OffsetEncoder,
    z: Tensor,
    t: Tensor,
    clip_features: Tensor,
    empty: Tensor,
    stop_gradient: bool = False,
) -> Tensor:
    """The word offset E ``(B, D)`` for noisy latents ``z`` ``(B, 4, h, w)`` at ``t`` ``(B,)``.

    F comes from a pass with the EMPTY prompt's context ``empty`` ``(1, L, D)`` and the weights in use;
    ``stop_gradient`` cuts the gradients through that pass (an ablation).
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and not stop_gradient):
        features = unet.features(z, t, empty.expand(z.shape[0], -1, -1))
    return encoder(clip_features, features)


def diffusion_losses(
    unet: UNet,
    text: TextEncoder,
    encoder: OffsetEncoder,
    *,
    latents: Tensor,
    clip_features: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    templates: Sequence[str],
    domain_word_embedding: Tensor,
    scale: float,
    empty: Tensor,
    masks: Tensor | None = None,
    stop_feature_gradient: bool = False,
) -> LossParts:
    """The loss of B samples with the weights in use; call it, and its backward, inside ``unet.using(...)``.

    Args:
        latents: ``(B, 4, h, w)``, clean, in the UNet's scale.
        clip_features: ``(B, L, C)``.
        timesteps, noise: ``(B,)`` and ``(B, 4, h, w)``.
        templates: B prompts, each with "{}" once where the word stands.
        domain_word_embedding: e_d ``(D,)``.
        scale: s.
        empty: context ``(1, L, D)`` of the empty prompt.
        masks: ``(B, 1, H, W)`` in 0-1, 1 = learn here; resized to the latent.
        stop_feature_gradient: see :func:`predict_offset`.
    """
    z = unet.schedule.add_noise(latents, noise, timesteps)
    offset = predict_offset(unet, encoder, z, timesteps, clip_features, empty, stop_feature_gradient)
    context = text.encode(templates, domain_word_embedding + scale * offset)
    error = unet.denoise(z, timesteps, context) - unet.schedule.target(latents, noise, timesteps, unet.prediction)
    squared = error.float().square()
    if masks is not None:
        squared = squared * mask_weights(masks, (latents.shape[-2], latents.shape[-1]))
    return LossParts(squared.mean(dim=(1, 2, 3)), offset.float().square().sum(dim=1))


def mask_weights(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Loss weights ``(B, 1, h, w)`` of mean 1 per sample from masks ``(B, 1, H, W)`` in 0-1.

    An all-zero mask counts as no mask: there is nothing to learn from otherwise.
    """
    if masks.shape[-2:] != size:
        masks = F.interpolate(masks, size=size, mode="bilinear", antialias=True)
    mean = masks.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where(mean > 0, masks / mean.clamp_min(torch.finfo(masks.dtype).tiny), torch.ones_like(masks))


def inner_masks(masks: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Masks ``(B, 1, H, W)`` at the latent's size ``(B, 1, h, w)``, without cells that they cover by too little.

    A latent cell is 8 x 8 pixels: on the mask's edge it also holds what was left out (a hat's brim, the background), and a
    concept learns that as far as the cell counts. With ``threshold`` t in [0, 1) a cell that is covered by c counts
    (c - t) / (1 - t), and nothing below t. Coverage is relative to the mask's largest value, so that neither a soft
    brush nor a small subject leaves nothing to learn from.
    """
    cells = F.interpolate(masks, size=size, mode="bilinear", antialias=True)
    highest = cells.amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(masks.dtype).tiny)
    return (cells / highest - threshold).clamp(0) / (1 - threshold)
