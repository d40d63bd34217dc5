"""Where the subject of a photo is, by the domain's own knowledge: the mask of tuning where nobody painted one.

The paper weights the loss by a face segmentation, made by a network of its own (section 3.4). Here the domain answers, by
denoising the photo with the encoder's word for it and without. Two maps tell the subject together:

* change: where the encoder's word predicts otherwise than the domain's word alone, as DiffEdit (arXiv 2210.11427)
  compares two prompts. It tells the individual from the background.
* gain: where the encoder's word predicts the photo better than the empty prompt does, at noise that hides details. What
  the encoder knows nothing of, such as a hat, it does not predict.

Levels, smoothing and the weight of the gain were chosen on validation photos of the mini world's two domains.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...diffusion import draw_samples
from .word_model import WordModel

logger = logging.getLogger(__name__)

# Noise levels per photo and map, and from which part of the schedule (0: clean). They pass the UNet together, not in tuning's
# micro-batches: rounding may move the outline by a cell, and a setting of memory must not decide what is learned.
LEVELS = 8
PASSES = 2  # per photo
CHANGE_RANGE = (0.0, 0.5)
GAIN_RANGE = (0.7, 0.9)
GAIN_WEIGHT = 0.25  # exponent
# Side of the smoothing square as a share of the latent's.
SMOOTHING = 1 / 8


@torch.no_grad()
def find_subject(
    words: WordModel, latents: Tensor, clip_features: Tensor, seed: int, on_pass: Callable[[], object]
) -> Tensor:
    """Masks ``(n, 1, h, w)`` in {0, 1} of the photos' subject; call it inside ``unet.using(...)`` the domain's weights.

    Args:
        words: the untuned domain's.
        latents: ``(n, 4, h, w)``, clean, in the UNet's scale.
        clip_features: ``(n, L, C)``.
        seed: of noise, timesteps and templates.
        on_pass: called ``PASSES`` times per photo.
    """
    unet = words.unet

    def noisy(photo: int, bounds: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
        """One photo's latents with noise, timesteps, targets, numbers of templates."""
        lowest, end = (round(share * unet.schedule.timesteps) for share in bounds)
        sample = draw_samples(
            seed,
            range(photo * LEVELS, (photo + 1) * LEVELS),
            latent_shape=latents.shape[1:],
            batch=LEVELS,
            templates=len(words.templates),
            timesteps=max(1, end - lowest),
            stream=f"subject from {lowest}",
        )
        t, noise = (sample.timesteps + lowest).to(latents.device), sample.noise.to(latents.device)
        clean = latents[photo].expand(LEVELS, -1, -1, -1)
        target = unet.schedule.target(clean, noise, t, unet.prediction)
        return unet.schedule.add_noise(clean, noise, t), t, target, sample.templates

    def individual(photo: int, z: Tensor, t: Tensor, templates: Sequence[int]) -> Tensor:
        word = words.word(z, t, clip_features[photo].expand(len(t), -1, -1))
        return unet.denoise(z, t, words.contexts(templates, word))

    def changes(photo: int, part: slice) -> Tensor:
        z, t, _, templates = noisy(photo, CHANGE_RANGE)
        z, t, templates = z[part], t[part], templates[part]
        domain_word = words.domain_word_embedding.expand(len(t), -1)
        coarse = unet.denoise(z, t, words.contexts(templates, domain_word))
        return change_map(individual(photo, z, t, templates), coarse)

    def gains(photo: int, part: slice) -> Tensor:
        z, t, target, templates = noisy(photo, GAIN_RANGE)
        z, t, target, templates = z[part], t[part], target[part], templates[part]
        silent = unet.denoise(z, t, words.empty.expand(len(t), -1, -1))
        return gain_map(individual(photo, z, t, templates), silent, target)

    found = []
    for photo in range(latents.shape[0]):
        maps = []
        for made in (changes, gains):
            maps.append(_in_memory(lambda part, made=made, photo=photo: made(photo, part)))  # type: ignore[misc]
            on_pass()
        found.append(subject_mask(*maps))
    return torch.cat(found)


def _in_memory(maps: Callable[[slice], Tensor]) -> Tensor:
    """The maps of all noise levels in one pass; out of memory, one after the other."""
    try:
        return maps(slice(0, LEVELS))
    except torch.OutOfMemoryError:
        logger.info("Out of memory with %d noise levels at once; looking for the subject one by one.", LEVELS)
    # Outside the handler: its traceback would keep the failed pass's tensors alive.
    return torch.cat([maps(slice(level, level + 1)) for level in range(LEVELS)])


def change_map(individual: Tensor, coarse: Tensor) -> Tensor:
    """How much two predictions ``(B, 4, h, w)`` differ in every cell: ``(B, 1, h, w)``, of mean 1 per sample.

    Each noise level counts alike, whatever the size of its predictions; equal predictions give zeros.
    """
    differences = (individual.float() - coarse.float()).square().mean(dim=1, keepdim=True).sqrt()
    mean = differences.mean(dim=(1, 2, 3), keepdim=True)
    return differences / mean.clamp_min(torch.finfo(mean.dtype).tiny)


def gain_map(individual: Tensor, silent: Tensor, target: Tensor) -> Tensor:
    """By how much ``individual`` errs less than ``silent``, all ``(B, 4, h, w)``: ``(B, 1, h, w)``, below 0 where more."""
    errors = [(prediction.float() - target.float()).square() for prediction in (silent, individual)]
    return (errors[0] - errors[1]).mean(dim=1, keepdim=True)


def subject_mask(changes: Tensor, gains: Tensor) -> Tensor:
    """The subject ``(1, 1, h, w)`` in {0, 1} from one photo's maps, both ``(B, 1, h, w)``.

    Their means are smoothed, multiplied and cut in two by Otsu's threshold. Maps that tell nothing apart (all cells
    equal, or not finite) give ones: all of the photo is learned.
    """
    relevance = _smooth(changes) * _smooth(gains).clamp_min(0) ** GAIN_WEIGHT
    threshold = otsu_threshold(relevance)
    return torch.ones_like(relevance) if math.isnan(threshold) else (relevance >= threshold).float()


def _smooth(maps: Tensor) -> Tensor:
    size = max(3, round(max(maps.shape[-2:]) * SMOOTHING) // 2 * 2 + 1)
    mean = maps.mean(dim=0, keepdim=True)
    return F.avg_pool2d(F.pad(mean, (size // 2,) * 4, mode="replicate"), size, stride=1)


def otsu_threshold(values: Tensor) -> float:
    """The value from which on the upper of two classes begins, so that their means lie apart as clearly as can be.

    Otsu (1979): the split with the largest variance between classes. NaN if the values are all equal or not finite.
    """
    ordered = values.flatten().double().sort().values
    count = ordered.numel()
    if not torch.isfinite(ordered).all() or ordered[0] == ordered[-1]:
        return math.nan
    below = torch.arange(1, count, device=ordered.device, dtype=ordered.dtype)
    sums = ordered.cumsum(0)
    lower, upper = sums[:-1] / below, (sums[-1] - sums[:-1]) / (count - below)
    split = int((below * (count - below) * (upper - lower).square()).argmax()) + 1
    return float(ordered[split])
