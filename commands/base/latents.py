"""The base's VAE: photos to latents in the UNet's scale, and back for previews."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

SCALING = 0.18215  # of the latents of Stable Diffusion 1.x and 2.x


class LatentCoder:
    """A frozen VAE with the scale that its UNet was trained with.

    Args:
        network: frozen here; it computes in its parameters' type and where they are.
        scale, shift: ``latent = scale · code + shift``, where the code is the posterior's mean.
    """

    def __init__(self, network: AutoencoderKL | AutoencoderTiny, scale: float, shift: float = 0.0) -> None:
        self.network = network.eval().requires_grad_(False)
        self.scale, self.shift = scale, shift

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents ``(B, 4, H/8, W/8)`` float32 of images ``(B, 3, H, W)`` in [0, 1]; the mean, nothing is drawn."""
        found = self.network.encode(self._to_network(2 * images.float() - 1))
        code = found.latent_dist.mode() if isinstance(self.network, AutoencoderKL) else found.latents
        return code.float() * self.scale + self.shift

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images ``(B, 3, 8h, 8w)`` float32 in [0, 1] of latents ``(B, 4, h, w)``."""
        code = (latents.float() - self.shift) / self.scale
        return ((self.network.decode(self._to_network(code)).sample.float() + 1) / 2).clamp(0, 1)

    def _to_network(self, tensor: Tensor) -> Tensor:
        parameter = next(self.network.parameters())
        return tensor.to(parameter.device, parameter.dtype)
