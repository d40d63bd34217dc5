"""The forward diffusion process of Stable Diffusion: how noisy a latent is at a timestep, and what is predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A discrete noise schedule.

    Attributes:
        alphas_cumprod: ``(T,)`` float32, the share of signal power left at timesteps 0..T-1, falling.
    """

    alphas_cumprod: Tensor

    @classmethod
    def scaled_linear(cls, start: float = 0.00085, end: float = 0.012, timesteps: int = 1000) -> NoiseSchedule:
        """Stable Diffusion's schedule: the square roots of beta grow linearly from ``start`` to ``end``."""
        betas = torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64) ** 2
        return cls(torch.cumprod(1.0 - betas, dim=0).float())

    @property
    def timesteps(self) -> int:
        """Number of diffusion timesteps T (1000 for Stable Diffusion)."""
        return int(self.alphas_cumprod.shape[0])

    def add_noise(self, latent: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) eps`` for latents ``(B, 4, h, w)`` and timesteps ``(B,)``."""
        signal, spread = self._rates(t, latent)
        return signal * latent + spread * noise

    def target(self, latent: Tensor, noise: Tensor, t: Tensor, prediction: str) -> Tensor:
        """What the network should say: ``eps``, or ``v = sqrt(a_t) eps - sqrt(1 - a_t) z_0``.

        Raises:
            ValueError: ``prediction`` is neither "epsilon" nor "v".
        """
        if prediction == "epsilon":
            return noise
        if prediction == "v":
            signal, spread = self._rates(t, latent)
            return signal * noise - spread * latent
        raise ValueError(f"Prediction type {prediction!r} is unknown: it must be 'epsilon' or 'v'.")

    def clean(self, z: Tensor, predicted: Tensor, t: Tensor, prediction: str) -> Tensor:
        """The clean latent that a prediction for ``z`` at ``t`` amounts to: :meth:`target` turned round.

        Raises:
            ValueError: ``prediction`` is neither "epsilon" nor "v".
        """
        signal, spread = self._rates(t, z)
        if prediction == "epsilon":
            return (z - spread * predicted) / signal
        if prediction == "v":
            return signal * z - spread * predicted
        raise ValueError(f"Prediction type {prediction!r} is unknown: it must be 'epsilon' or 'v'.")

    def _rates(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.alphas_cumprod.to(like.device)[t.to(like.device)].view(-1, *[1] * (like.ndim - 1))
        return kept.sqrt().to(like.dtype), (1.0 - kept).sqrt().to(like.dtype)
