"""``train vae``: the autoencoder. Gate: at least 30 dB on held-out pictures."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .attributes import identities_of, random_scene
from .autoencoder import Autoencoder, peak_signal_to_noise, start_from_colors, whiten
from .dataset import Pictures
from .models import channels_last
from .renderer import render
from .training import Run, Schedule

log = logging.getLogger(__name__)
GATE_DB = 30.0
LATENT_NOISE = 0.02


def held_out_pictures(count: int = 256) -> Tensor:
    """Held-out faces and cats in random scenes ``(count, 3, 128, 128)``."""
    rng = np.random.default_rng(7)
    cats = count // 4
    identities = [*identities_of("face", "held-out", count - cats), *identities_of("cat", "held-out", cats)]
    return render(identities, [random_scene(rng) for _ in identities])


def _latents(model: Autoencoder, pictures: Pictures, count: int = 1024) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.encode(pictures[list(range(i, i + 64))]) for i in range(0, count, 64)])


def measure_latents(model: Autoencoder, pictures: Pictures) -> None:
    """Sets the mean and standard deviation that the UNet's scale is made of."""
    latents = _latents(model, pictures)
    model.latent_mean.copy_(latents.mean())
    model.latent_std.copy_(latents.std())
    log.info("latent channels: mean %s, std %s", latents.mean((0, 2, 3)), latents.std((0, 2, 3)))


def gate(model: Autoencoder) -> float:
    """PSNR in dB over held-out pictures, in float32."""
    pictures = held_out_pictures()
    with torch.no_grad():
        decoded = torch.cat([model.decode(model.encode(p)) for p in pictures.split(64)])
    return peak_signal_to_noise(pictures, decoded)


def train(
    folder: Path, pictures: Pictures, schedule: Schedule, decoder_schedule: Schedule, batch: int, seed: int
) -> Autoencoder:
    """Trains encoder and decoder together, whitens the latents, and lets the decoder get used to that."""
    torch.manual_seed(seed)
    model = Autoencoder()
    start_from_colors(model)
    model = channels_last(model)
    run = Run(folder, model, schedule)
    batches = pictures.batches(batch, seed, run.step)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        x = pictures[next(batches)].contiguous(memory_format=torch.channels_last)
        noise = torch.Generator().manual_seed(seed * 1_000_003 + step)
        latents = model.encode(x)
        spread = LATENT_NOISE * latents.detach().float().std()
        latents = latents + spread * torch.randn(latents.shape, generator=noise)
        error = model.decode(latents).float() - x
        squared = error.square().mean()
        # The absolute error keeps thin lines and small marks sharp, which the squared one is content to blur.
        centered = latents.float().mean().square() + (latents.float().std() - 1.0).square()
        value = squared + 0.05 * error.abs().mean() + 1e-3 * centered
        return value, {"psnr": float(-10 * squared.detach().log10())}

    def report(step: int) -> None:
        log.info("step %d: %.2f dB held-out", step, gate(model))

    run.train(loss, report)
    with torch.no_grad():
        whiten(model, _latents(model, pictures))
    model.taesd_encoder.requires_grad_(False)
    run = Run(folder / "decoder", model, decoder_schedule)
    batches = pictures.batches(batch, seed + 1, run.step)
    run.train(loss, report)
    run.finish()
    measure_latents(model, pictures)
    return model
