"""How well a domain's word explains a photo: whether the photo shows what the domain was trained for.

A domain answers every picture with a word, also one of something that it has never seen; what is learned from that word
then looks like nothing in particular. So the domain is asked first: with the word that the encoder gives for this photo,
does it denoise the photo better than with no word at all?

    gain = mean over noise levels of 1 - ||eps - eps(z_t, word)||^2 / ||eps - eps(z_t, empty prompt)||^2

For what a domain knows, the mean lies above 0 nearly always. For another subject the word tells the wrong thing, and the mean
lies below 0. Lengths of the offset E, what the word changes, and the
gain over the domain word alone tell less: ``python -m benchmarks.photo_fit`` measures the gain, and the least that is usual.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...diffusion import denoising_errors, draw_samples
from ...photos import Photos
from ...training import chunks
from .domain_info import DomainInfo
from .word_model import WordModel

# Noise levels per photo, and from which part of the schedule (0: clean). Nearer to clean a word explains little of any photo, and
# less of a subject on white. A domain's ``fit_threshold`` holds for these numbers.
LEVELS = 16
RANGE = (0.4, 1.0)
# A photo is looked at on so many cells a side; where hardly any neighbors differ by more than this, in [0, 1], it shows nothing.
CELLS = 32
EDGE = 0.04
RARE = 0.01  # of a domain's own photos are called unusual, at most
# Not the tuning's: what is said of a photo does not depend on that.
SEED = 0


@torch.no_grad()
def photo_gains(
    words: WordModel,
    photos: Photos,
    micro_batch: int = LEVELS,
    on_pass: Callable[[], object] = lambda: None,
) -> tuple[float, ...]:
    """The gain of the domain's word over none for each of n photos: 1 at most; below 0 where no word is better.

    It costs three passes of the UNet for each of ``LEVELS`` noise levels, without gradients: a twentieth of a tuning of 15
    steps at batch 16. Call it inside ``unet.using(...)`` the domain's weights.

    Args:
        words: the untuned domain's.
        photos: on the UNet's device; their masks do not matter.
        micro_batch: how many noise levels pass the UNet at once.
        on_pass: called after each of them; whatever it raises passes through.
    """
    unet, latents, clip_features = words.unet, photos.latents, photos.clip_features
    assert clip_features is not None
    lowest, end = (round(share * unet.schedule.timesteps) for share in RANGE)

    def gain(photo: int, levels: range) -> Tensor:
        # The same noise for every photo, so that their gains compare.
        sample = draw_samples(
            SEED,
            levels,
            latent_shape=latents.shape[1:],
            batch=LEVELS,
            templates=len(words.templates),
            timesteps=end - lowest,
            stream="photo fit",
        )
        sample = replace(sample, timesteps=sample.timesteps + lowest).to(latents.device)
        clean = latents[photo].expand(len(levels), -1, -1, -1)
        z = unet.schedule.add_noise(clean, sample.noise, sample.timesteps)
        word = words.word(z, sample.timesteps, clip_features[photo].expand(len(levels), -1, -1))
        contexts = words.contexts(sample.templates, word), words.empty.expand(len(levels), -1, -1)
        spoken, silent = (denoising_errors(unet, clean, sample, context, z=z) for context in contexts)
        return 1 - spoken / silent.clamp_min(torch.finfo(silent.dtype).tiny)

    gains = []
    for photo in range(len(photos)):
        parts = []
        for levels in chunks(LEVELS, micro_batch):
            parts.append(gain(photo, levels))
            on_pass()
        gains.append(float(torch.cat(parts).mean()))
    return tuple(gains)


def shows_nothing(photo: Tensor) -> bool:
    """Whether a photo ``(3, H, W)`` in [0, 1] is one color or an even gradient, whatever its grain: whether it has no edges.

    The domain's gain does not tell: an encoder that knows no such photo may well guess its color.
    """
    cells = F.interpolate(photo[None].float(), size=(CELLS, CELLS), mode="bilinear", antialias=True)[0]
    steps = torch.cat([cells.diff(dim=dim).abs().amax(dim=0).flatten() for dim in (1, 2)])
    return bool(steps.quantile(0.99) <= EDGE)


def least_usual(gains: Sequence[float]) -> float:
    """The gain below which at most ``RARE`` of a domain's own photos lie, down to two decimals: its ``fit_threshold``.

    Args:
        gains: of 100 photos or more that the domain was NOT trained on; those it was trained on gain more.
    """
    return math.floor(100 * sorted(gains)[int(RARE * len(gains))]) / 100


def unusual(gains: Sequence[float], threshold: float | None) -> tuple[int, ...]:
    """Numbers of the photos, from 0, that the domain's word explains less than is usual; none without a threshold."""
    return () if threshold is None else tuple(n for n, gain in enumerate(gains) if gain < threshold)


def about_fit(info: DomainInfo, gains: Sequence[float]) -> tuple[str, ...]:
    """A warning if photos do not look like what the domain was trained for.

    Args:
        gains: of each photo, as :func:`photo_gains` gives them; empty if they were not measured.
    """
    found = unusual(gains, info.fit_threshold)
    if not found:
        return ()
    which = "this photo does" if len(gains) == 1 else f"photo {found[0] + 1} does"
    if len(found) > 1:
        which = f"photos {', '.join(str(number + 1) for number in found)} do"
    scores = ", ".join(f"{gains[number]:.2f}" for number in found)
    warning = (
        f"To the domain {info.name!r} {which} not look like {info.word!r} (score {scores}, usual {info.fit_threshold:.2f}"
        " or more): the result may not look like it. Crop closer with a mask, or load a domain that was made for it."
    )
    return (warning,)
