"""What every method minimizes: the error of the noise prediction, where a mask says that it counts.

    diffusion loss = mean((target - prediction)² [· mask / mean(mask)])

Here is also where a sample's randomness comes from: everything is drawn from (seed, global sample index) by local
streams, so micro-batches, processes and resumed runs see the same samples.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .layer_contexts import Context
from .unet import UNet


@dataclass(frozen=True, eq=False)
class DiffusionSample:
    """The random part of B samples, on the CPU.

    Attributes:
        timesteps: ``(B,)`` int64, 0..T-1.
        noise: ``(B, 4, h, w)`` float32, standard normal.
        templates: B numbers of prompt templates.
        photos: ``(B,)`` int64, numbers of photos (tuning) or of data rows (pre-training).
        numbers: global indices of the samples.
    """

    timesteps: Tensor
    noise: Tensor
    templates: tuple[int, ...]
    photos: Tensor
    numbers: tuple[int, ...] = ()

    def to(self, device: torch.device) -> DiffusionSample:
        """The same samples with their tensors on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("timesteps", "noise", "photos")}
        return dataclasses.replace(self, **moved)


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
    level: Callable[[float], float] = float,
) -> DiffusionSample:
    """Draw the samples with these global indices; sample i is the same whatever it is drawn together with.

    Timesteps are stratified: the k-th sample of an effective batch takes its timestep from the k-th of ``batch``
    parts of [0, T), equal ones unless ``level`` says otherwise, so that every batch covers the schedule. Photos take turns if a batch can hold them all, and
    which one begins changes from step to step, so that none is tied to a part of the schedule; else they are drawn evenly.

    Args:
        seed: of the run.
        indices: global sample indices; optimizer step n of a run holds ``n * batch`` to ``(n + 1) * batch - 1``.
        latent_shape: (4, h, w).
        batch: size of the EFFECTIVE batch.
        photos, templates, timesteps: how many there are to choose from.
        stream: name of the purpose, to keep two uses of one seed apart.
        level: rising from 0 to 1 as its argument does; the timestep is this of where a sample is in its batch, times T.
    """
    steps, noise, chosen_templates, chosen_photos = [], [], [], []
    numbers = tuple(indices)
    for index in numbers:
        generator = _generator(f"{stream}/{seed}/{index}")
        within = float(torch.rand((), generator=generator, dtype=torch.float64))
        steps.append(min(int(level((index % batch + within) / batch) * timesteps), timesteps - 1))
        chosen_templates.append(int(torch.randint(templates, (), generator=generator)))
        drawn = int(torch.randint(photos, (), generator=generator))
        if photos <= batch:
            drawn = (index % batch + _first_photo(f"{stream}/{seed}", index // batch, photos)) % photos
        chosen_photos.append(drawn)
        noise.append(torch.randn(tuple(latent_shape), generator=generator))
    return DiffusionSample(
        torch.tensor(steps), torch.stack(noise), tuple(chosen_templates), torch.tensor(chosen_photos), numbers
    )


def _generator(name: str) -> torch.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _first_photo(stream: str, step: int, photos: int) -> int:
    """Which photo takes the lowest part of the schedule in a step: each of them once in every ``photos`` steps."""
    order = torch.randperm(photos, generator=_generator(f"{stream}/turn {step // photos}"))
    return int(order[step % photos])


def denoising_errors(
    unet: UNet,
    latents: Tensor,
    sample: DiffusionSample,
    context: Context,
    masks: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """The diffusion loss ``(B,)`` of B samples with the weights in use, per sample.

    Args:
        unet: call it, and the backward pass, inside ``unet.using(...)``.
        latents: ``(B, 4, h, w)``, clean, in the UNet's scale.
        sample: its timesteps and noise, on the latents' device.
        context: of the prompts, ``(B, L, D)``, or one for each cross-attention layer.
        masks: ``(B, 1, H, W)`` in 0-1, 1 = learn here; resized to the latent.
        z: the noisy latents, if they were made already.
    """
    t, noise = sample.timesteps, sample.noise
    if z is None:
        z = unet.schedule.add_noise(latents, noise, t)
    error = unet.denoise(z, t, context) - unet.schedule.target(latents, noise, t, unet.prediction)
    squared = error.float().square()
    if masks is not None:
        squared = squared * mask_weights(masks, (latents.shape[-2], latents.shape[-1]))
    return squared.mean(dim=(1, 2, 3))


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
