"""The domain looks for its subject in a whole photo, on ComfyUI's networks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ....e4t_core.crop import Square
from ....e4t_core.methods.e4t.redrawing import AT_ONCE
from ....e4t_core.methods.e4t.subject_finding import coarse_size, find_subjects
from ....e4t_core.subject_search import Subject
from ..networks.backbone import image_features
from ..networks.base_model import ComfyUNet
from ..networks.compute_type import bfloat16_products, compute_type, uses_autocast
from ..networks.text_encoder import ComfyTextEncoder, unload
from .photos import Photo, resize
from .request import LoadedDomain, Request

logger = logging.getLogger(__name__)


class Finder:
    """Finds the subjects of photos, as ``crops.Find``; networks are made ready at the first photo.

    Args:
        request: with a domain.
        on_pass: called after every pass of the UNet; whatever it raises passes through.
    """

    def __init__(self, request: Request, on_pass: Callable[[], object]) -> None:
        self._request, self._on_pass = request, on_pass
        self._networks: tuple[ComfyUNet, ComfyTextEncoder] | None = None

    def __call__(self, photo: Photo) -> list[Subject] | None:
        """From left to right; none at all where there is too little memory to look."""
        for at_once in (AT_ONCE, 1):
            try:
                with torch.inference_mode(False), torch.no_grad():
                    return self._find(photo.picture.clone(), at_once)
            except torch.OutOfMemoryError:
                logger.info("Out of memory while looking at %d squares of the photo at once.", at_once)
        self._networks = None
        return None

    def _find(self, picture: Tensor, at_once: int) -> list[Subject]:
        request = self._request
        assert request.loaded is not None
        domain = request.loaded.domain
        if self._networks is None:
            # The search holds copies of its own; so does tuning.
            unload(request.model, request.clip.patcher)
            device = request.model.load_device
            rounded = device.type != "cpu" and uses_autocast(device)
            self._networks = ComfyUNet(request.model, compute_type(device)), ComfyTextEncoder(request.clip, rounded)
        unet, text = self._networks
        view = _View(request, request.loaded, picture, coarse_size(request.image_size), unet.device)
        photo_size = (picture.shape[-2], picture.shape[-1])
        with bfloat16_products(unet.device):
            return find_subjects(domain, unet, text, view, photo_size, request.image_size, self._on_pass, at_once)


class _View:
    """A photo as the networks see squares of it."""

    def __init__(
        self, request: Request, loaded: LoadedDomain, picture: Tensor, size: int, device: torch.device
    ) -> None:
        self._request, self._loaded, self._picture, self._size, self._device = request, loaded, picture, size, device

    def _cut(self, squares: Sequence[Square]) -> Tensor:
        """``(n, S, S, 3)`` in [0, 1]."""
        crops = [
            resize(self._picture[None, :, rows, columns], self._size, "bicubic")
            for rows, columns in (square.window() for square in squares)
        ]
        return torch.cat(crops).movedim(1, -1).contiguous()

    # Inference mode, as ComfyUI runs nodes: a model that is loaded outside of it cannot be patched.

    def latents(self, squares: Sequence[Square]) -> Tensor:
        request = self._request
        with torch.inference_mode():
            latents: Tensor = request.model.model.process_latent_in(request.vae.encode(self._cut(squares)))
        return latents.detach().to(self._device, torch.float32).clone()

    def clip_features(self, squares: Sequence[Square]) -> Tensor:
        loaded = self._loaded
        with torch.inference_mode():
            features = image_features(loaded.domain, loaded.clip_vision, self._cut(squares))
        return features.to(self._device).clone()
