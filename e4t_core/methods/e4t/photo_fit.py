"""How well a domain's word explains a photo: whether the photo shows what the domain was trained for.

A domain answers every picture with a word, also one of something that it has never seen; what is learned from that word
then looks like nothing in particular. So the domain is asked first: with the word that the encoder gives for this photo,
does it denoise the photo better than with no word at all?

    gain = mean over noise levels of 1 - ||eps - eps(z_t, word)||^2 / ||eps - eps(z_t, empty prompt)||^2

For what a domain knows, the gain lies above 0 at nearly all noise levels. For another subject, a texture or an empty
picture the word tells the wrong thing, and the gain lies below 0. Lengths of the offset E, what the word changes, and the
gain over the domain word alone tell less: ``python -m benchmarks.photo_fit`` measures the gain, and the least that is usual.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...objective import draw_samples, predict_offset
from ...tuning import ConceptPhotos
from ...unet import TextEncoder, UNet
from .concept_encoder import OffsetEncoder
from .domain import Domain
from .weight_offsets import Offsets

Module = TypeVar("Module", OffsetEncoder, Offsets)

# Noise levels per photo, and from which part of the schedule (0: clean). Nearer to clean a word explains little of any photo, and
# less of a subject on white; nearer to noise chance decides.
LEVELS = 16
RANGE = (0.4, 0.8)
# A photo is looked at on so many cells a side; where hardly any neighbors differ by more than this, in [0, 1], it shows nothing.
CELLS = 32
EDGE = 0.04
RARE = 0.01  # of a domain's own photos are called unusual, at most
# Not the tuning's: what is said of a photo does not depend on that.
SEED = 0


@torch.no_grad()
def photo_gains(
    unet: UNet,
    text: TextEncoder,
    domain: Domain,
    photos: ConceptPhotos,
    micro_batch: int = LEVELS,
    on_pass: Callable[[], object] = lambda: None,
) -> tuple[float, ...]:
    """The gain of the domain's word over none for each of n photos: 1 at most; below 0 where no word is better.

    It costs three passes of the UNet for each of ``LEVELS`` noise levels, without gradients: a twentieth of a tuning of 15
    steps at batch 16. The base is not changed.

    Args:
        unet, text: the base, as for tuning.
        domain: whose word is asked.
        photos: as for tuning; their masks do not matter.
        micro_batch: how many noise levels pass the UNet at once.
        on_pass: called after each of them; whatever it raises passes through.
    """
    parameters = unet.parameters()
    device = next(iter(parameters.values())).device
    latents, clip_features = photos.latents.to(device, torch.float32), photos.clip_features.to(device, torch.float32)
    encoder, offsets = _on(device, domain.encoder), _on(device, domain.offsets)
    fixed = offsets.fixed(clip_features.mean(dim=0, keepdim=True))
    domain_word, empty = text.word(domain.info.word).to(device, torch.float32), text.empty().to(device)
    templates = domain.info.templates
    lowest, end = (round(share * unet.schedule.timesteps) for share in RANGE)

    def gain(photo: int, levels: range) -> Tensor:
        # The same noise for every photo, so that their gains compare.
        sample = draw_samples(
            SEED,
            levels,
            latent_shape=latents.shape[1:],
            batch=LEVELS,
            templates=len(templates),
            timesteps=end - lowest,
            stream="photo fit",
        )
        t, noise = (sample.timesteps + lowest).to(device), sample.noise.to(device)
        clean = latents[photo].expand(len(levels), -1, -1, -1)
        z, target = unet.schedule.add_noise(clean, noise, t), unet.schedule.target(clean, noise, t, unet.prediction)
        features = clip_features[photo].expand(len(levels), -1, -1)
        words = domain_word + domain.info.scale * predict_offset(unet, encoder, z, t, features, empty)
        prompts = [templates[number] for number in sample.templates]
        word, silent = (
            (unet.denoise(z, t, context).float() - target).square().mean(dim=(1, 2, 3))
            for context in (text.encode(prompts, words), empty.expand(len(levels), -1, -1))
        )
        return 1 - word / silent.clamp_min(torch.finfo(silent.dtype).tiny)

    gains = []
    with unet.using({name: fixed.apply(name, parameters[name].float()) for name in offsets.names}):
        for photo in range(latents.shape[0]):
            parts = []
            for start in range(0, LEVELS, micro_batch):
                parts.append(gain(photo, range(start, min(start + micro_batch, LEVELS))))
                on_pass()
            gains.append(float(torch.cat(parts).mean()))
    return tuple(gains)


def _on(device: torch.device, module: Module) -> Module:
    """A copy for a device; the domain stays as it is, and where it is."""
    copy = module.blank().to_empty(device=device)
    copy.load_state_dict(module.state_dict())
    return copy.eval()


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
