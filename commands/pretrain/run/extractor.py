"""The frozen networks that read a photo: autoencoder and image backbone."""

from __future__ import annotations

import torch
from torch import Tensor

from commands.base.networks import Base
from commands.pretrain.config.sections import Config
from commands.pretrain.data.pictures import to_float
from commands.pretrain.data.training_data import TrainingData
from e4t_core.fingerprint import fingerprint
from e4t_core.methods.e4t.clip_backbone import ClipBackbone


class Extractor:
    """The frozen networks that read a photo.

    They compute in their own types, without autocast. ``device`` is where they are.
    """

    def __init__(self, base: Base, backbone: ClipBackbone, device: torch.device) -> None:
        self.base, self.backbone, self.device = base, backbone, device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Latents ``(B, 4, h, w)`` and CLIP features ``(B, L, C)``, float32, of images ``(B, 3, S, S)`` uint8."""
        pixels = to_float(images.to(self.device, non_blocking=True))
        return self.base.vae.encode(pixels), self.backbone.cls_features(pixels)

    def key(self, config: Config, data: TrainingData) -> str:
        """Changes whenever the same row could give other features."""
        weights = {f"vae.{name}": value for name, value in self.base.vae.network.state_dict().items()}
        weights |= {f"backbone.{name}": value for name, value in self.backbone.tower.state_dict().items()}
        sources = [
            (s.kind, s.path, s.column, s.factory, sorted(s.options.items()), s.alpha_mask) for s in config.data.sources
        ]
        described = (
            config.domain.image_size,
            self.backbone.info.layers,
            sources,
            data.probe(),
            config.training.use_mask,
        )
        return fingerprint(weights, repr(described))
