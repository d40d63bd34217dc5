"""The mini world's VAE: a tiny autoencoder in TAESD's block layout, which stock loaders read from a checkpoint.

The stages are narrower where the picture is large; zero padding to the stock 64 channels is exact, because every
layer between two stages is a plain convolution and every activation maps zero to zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STOCK_WIDTH = 64
UNET_SCALE = 0.18215  # SD 1.x: the UNet sees 0.18215 times what the VAE node gives


@dataclass(frozen=True)
class AutoencoderShape:
    """Channels, and residual blocks that are more than an identity, at full, half, quarter and eighth size."""

    encoder: tuple[int, int, int, int] = (16, 32, 64, 64)
    encoder_blocks: tuple[int, int, int, int] = (0, 1, 2, 3)
    decoder: tuple[int, int, int, int] = (24, 32, 64, 64)
    decoder_blocks: tuple[int, int, int, int] = (0, 2, 3, 3)
    latent: int = 4


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class _SoftClamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def _blocks(width: int, used: int, stock: int) -> list[nn.Module]:
    """``stock`` blocks; those beyond ``used`` are the identity for what a ReLU has passed (exported as zeros)."""
    return [_Block(width) if i < used else nn.ReLU() for i in range(stock)]


def _encoder(shape: AutoencoderShape) -> nn.Sequential:
    widths, used = shape.encoder, shape.encoder_blocks
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1), *_blocks(widths[0], used[0], 1)]
    for before, after, count in zip(widths, widths[1:], used[1:], strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1, stride=2, bias=False), *_blocks(after, count, 3)]
    return nn.Sequential(*layers, nn.Conv2d(widths[3], shape.latent, 3, padding=1))


def _decoder(shape: AutoencoderShape) -> nn.Sequential:
    widths, used = shape.decoder[::-1], shape.decoder_blocks[::-1]
    layers: list[nn.Module] = [_SoftClamp(), nn.Conv2d(shape.latent, widths[0], 3, padding=1), nn.ReLU()]
    for before, after, count in zip(widths, widths[1:], used, strict=False):
        layers += [
            *_blocks(before, count, 3),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(before, after, 3, padding=1, bias=False),
        ]
    return nn.Sequential(*layers, *_blocks(widths[3], used[3], 1), nn.Conv2d(widths[3], 3, 3, padding=1))


class Autoencoder(nn.Module):
    """Pictures ``(B, 3, 128, 128)`` in [0, 1] <-> raw latents ``(B, 4, 16, 16)``."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, shape: AutoencoderShape = AutoencoderShape()) -> None:
        super().__init__()
        self.shape = shape
        self.taesd_encoder = _encoder(shape)
        self.taesd_decoder = _decoder(shape)
        self.register_buffer("latent_mean", torch.zeros(()))
        self.register_buffer("latent_std", torch.ones(()))

    def encode(self, pictures: Tensor) -> Tensor:
        return self.taesd_encoder(pictures)

    def decode(self, latents: Tensor) -> Tensor:
        return self.taesd_decoder(latents)

    def to_unet(self, latents: Tensor) -> Tensor:
        """Raw latents -> what the UNet denoises: zero mean, unit variance over the training pictures."""
        return (latents - self.latent_mean) / self.latent_std

    def from_unet(self, latents: Tensor) -> Tensor:
        return latents * self.latent_std + self.latent_mean


def start_from_colors(model: Autoencoder) -> None:
    """Lets a picture's colors travel through latent channels 0-2 from the first step on.

    An autoencoder of plain random weights spends its first thousands of steps finding this path.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _Block):
                last = module.conv[4]
                assert isinstance(last, nn.Conv2d) and last.bias is not None
                last.weight.mul_(0.1)
                last.bias.zero_()
        for part in (model.taesd_encoder, model.taesd_decoder):
            for layer in part:
                if isinstance(layer, nn.Conv2d):
                    keep = torch.zeros_like(layer.weight)
                    for c in range(3):
                        keep[c, c, 1, 1] = 1.0
                    if layer.stride == (2, 2):  # average instead of picking one pixel in four
                        for c in range(3):
                            keep[c, c] = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16
                    layer.weight[:3] = keep[:3]
                    if layer.bias is not None:
                        layer.bias[:3] = 0


@torch.no_grad()
def whiten(model: Autoencoder, latents: Tensor) -> None:
    """Folds into the encoder what makes its latents ``(N, 4, h, w)`` uncorrelated, with zero mean and unit variance.

    As they come, three channels are nearly the colors red, green and blue: all carry brightness, and hue is a small
    difference between them, which a denoiser learns late. The decoder's first layer gets the inverse, which its clamp
    in front makes inexact: train the decoder on for a while.
    """
    samples = latents.movedim(1, -1).flatten(0, -2).double()
    mean = samples.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(samples.T))
    forward = (vectors / values.sqrt()) @ vectors.T
    back = (vectors * values.sqrt()) @ vectors.T
    last, first = model.taesd_encoder[-1], model.taesd_decoder[1]
    assert isinstance(last, nn.Conv2d) and isinstance(first, nn.Conv2d)
    assert last.bias is not None and first.bias is not None
    last.weight.copy_(torch.einsum("ij,jkhw->ikhw", forward, last.weight.double()))
    last.bias.copy_(forward @ (last.bias.double() - mean))
    first.bias.add_(torch.einsum("ijhw,j->i", first.weight.double(), mean))
    first.weight.copy_(torch.einsum("ijhw,jk->ikhw", first.weight.double(), back))


def peak_signal_to_noise(pictures: Tensor, reconstructions: Tensor) -> float:
    """Mean over pictures of the PSNR in dB; both in [0, 1]."""
    errors = (pictures - reconstructions.clamp(0, 1)).square().flatten(1).mean(1)
    return float((-10 * errors.clamp_min(1e-10).log10()).mean())


def stock_state(model: Autoencoder) -> dict[str, Tensor]:
    """The stock 64-channel layout under ``taesd_*``, ``vae_scale`` and ``vae_shift``.

    Stock encode gives ``enc / vae_scale + vae_shift`` and the UNet sees 0.18215 times that; with
    ``vae_scale = 0.18215 * std`` and ``vae_shift = -mean / vae_scale`` that is ``(enc - mean) / std``.
    """
    state: dict[str, Tensor] = {}
    latent, width = model.shape.latent, STOCK_WIDTH
    for name, part, inner, outer in (
        ("taesd_encoder", model.taesd_encoder, 3, latent),
        ("taesd_decoder", model.taesd_decoder, latent, 3),
    ):
        plain = (2,) if name == "taesd_decoder" else ()  # a ReLU of the stock layout itself, not an unused block
        first = next(i for i, layer in enumerate(part) if isinstance(layer, nn.Conv2d))
        for i, layer in enumerate(part):
            if isinstance(layer, nn.Conv2d):
                columns, rows = (inner if i == first else width), (outer if i == len(part) - 1 else width)
                _pad(state, f"{name}.{i}", layer, rows, columns)
            elif isinstance(layer, _Block) or (isinstance(layer, nn.ReLU) and i not in plain):
                for j in (0, 2, 4):
                    conv = layer.conv[j] if isinstance(layer, _Block) else None
                    _pad(state, f"{name}.{i}.conv.{j}", conv, width, width)
    scale = UNET_SCALE * model.latent_std
    state["vae_scale"] = scale.reshape(())
    state["vae_shift"] = (-model.latent_mean / scale).reshape(())
    return state


def _pad(state: dict[str, Tensor], key: str, conv: nn.Module | None, rows: int, columns: int) -> None:
    """Writes a 3x3 convolution, zero-padded to ``rows`` outputs and ``columns`` inputs; ``None``: all zeros."""
    weight = torch.zeros(rows, columns, 3, 3)
    bias: Tensor | None = torch.zeros(rows)
    if isinstance(conv, nn.Conv2d):
        weight[: conv.out_channels, : conv.in_channels] = conv.weight.detach()
        if conv.bias is None:
            bias = None
        else:
            assert bias is not None
            bias[: conv.out_channels] = conv.bias.detach()
    state[f"{key}.weight"] = weight
    if bias is not None:
        state[f"{key}.bias"] = bias
