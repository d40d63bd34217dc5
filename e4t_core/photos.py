"""Photos of one person or thing, as a method is given them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .diffusion import inner_masks
from .loop_settings import LoopSettings


class TuningError(ValueError):
    """Tuning that cannot go on; the message is one sentence that says why and what to change."""


@dataclass(frozen=True, eq=False)
class Photos:
    """n photos of ONE concept.

    Attributes:
        latents: ``(n, 4, h, w)``, VAE posterior means in the UNet's scale.
        clip_features: ``(n, L, C)``, what the image backbone says of them; none for methods that read none.
        masks: ``(n, 1, H, W)`` in 0-1, 1 = learn here; or none.
        masks_by_cell: they say already how much each latent cell is learned, as :meth:`for_training` makes them.

    Raises:
        TuningError: no photo, shapes that do not belong together, or values that are not finite.
    """

    latents: Tensor
    clip_features: Tensor | None = None
    masks: Tensor | None = None
    masks_by_cell: bool = False

    def __post_init__(self) -> None:
        if self.latents.ndim != 4 or 0 in self.latents.shape:
            raise TuningError(f"Latents of shape {tuple(self.latents.shape)} hold no photo: give at least one image.")
        count = self.latents.shape[0]
        if self.clip_features is not None and (self.clip_features.ndim != 3 or self.clip_features.shape[0] != count):
            raise TuningError(
                f"CLIP features of shape {tuple(self.clip_features.shape)} do not belong to {count} photos: give one"
                " set per photo."
            )
        if self.masks is not None and (self.masks.ndim != 4 or tuple(self.masks.shape[:2]) != (count, 1)):
            raise TuningError(
                f"Masks of shape {tuple(self.masks.shape)} do not belong to {count} photos: give one mask per photo."
            )
        if self.masks_by_cell and (self.masks is None or self.masks.shape[2:] != self.latents.shape[2:]):
            raise TuningError("Masks by latent cell must have the latents' size.")
        for name in ("latents", "clip_features", "masks"):
            tensor = getattr(self, name)
            if tensor is not None and not torch.isfinite(tensor).all():
                raise TuningError(f"The photos' {name} hold NaN or infinity: check the image, the VAE and the mask.")

    def __len__(self) -> int:
        return int(self.latents.shape[0])

    def for_training(self, settings: LoopSettings, device: torch.device) -> Photos:
        """Private float32 copies on a device, masks at the latents' size and only where the settings use them."""

        def private(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device, torch.float32, copy=True)

        masks = None
        if self.masks is not None and settings.use_mask:
            size = (self.latents.shape[-2], self.latents.shape[-1])
            masks = private(self.masks)
            masks = masks if self.masks_by_cell else inner_masks(masks, size, settings.mask_threshold)
        features = None if self.clip_features is None else private(self.clip_features)
        return Photos(private(self.latents), features, masks, masks_by_cell=masks is not None)
