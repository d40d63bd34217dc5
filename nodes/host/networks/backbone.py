"""CLIP features of the photo: from the domain file's own backbone (open_clip), or from a stock CLIP_VISION model."""

from __future__ import annotations

import comfy.clip_vision
import comfy.model_management
import torch
from torch import Tensor

from ....e4t_core.methods.e4t.clip_backbone import BackboneError, ClipBackbone, backbone_source, normalize, read_vectors
from ....e4t_core.methods.e4t.domain import Domain
from ....e4t_core.methods.e4t.domain_info import BackboneInfo
from .text_encoder import unload


def image_features(domain: Domain, clip_vision: comfy.clip_vision.ClipVisionModel | None, images: Tensor) -> Tensor:
    """The vectors ``(n, L, C)``, float32 on the CPU, that the domain reads.

    Computed in half precision where ComfyUI does so on this device; the backbone leaves the device afterwards.

    Args:
        domain: says which backbone, and may hold its weights.
        clip_vision: the stock model; needed where the domain file holds no weights, ignored where it does.
        images: ``(n, S, S, 3)`` in [0, 1].

    Raises:
        BackboneError: there is no backbone, or it is not the one that the domain was trained with.
    """
    info = domain.info.backbone
    pictures = images.movedim(-1, 1)
    with torch.inference_mode(False), torch.no_grad():
        if domain.backbone_state is not None:
            device = comfy.model_management.get_torch_device()
            backbone = ClipBackbone(info, domain.backbone_state, device, _precision(device))
            return backbone.cls_features(pictures.clone()).cpu()
    if clip_vision is None:
        source = backbone_source(info)
        raise BackboneError(
            f"Domain {domain.info.name!r} reads the image backbone {info.architecture} {info.pretrained}, which is not in"
            " its file: wire a CLIP_VISION model (Load CLIP Vision, e.g. CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors in"
            f" models/clip_vision{f', from {source}' if source else ''}) into Load E4T Domain."
        )
    _check_fits(domain.info.name, info, clip_vision)
    return stock_features(info, clip_vision, pictures)


def _check_fits(domain: str, info: BackboneInfo, clip_vision: comfy.clip_vision.ClipVisionModel) -> None:
    config = clip_vision.config
    width, layers = config.get("hidden_size"), config.get("num_hidden_layers", 0)
    if clip_vision.model_type != "clip_vision_model" or width != info.width or layers < info.layers[-1]:
        raise BackboneError(
            f"Domain {domain!r} reads the image backbone {info.architecture} ({info.layers[-1]} blocks or more, width"
            f" {info.width}), but the CLIP_VISION wired in is a {clip_vision.model_type} with {layers} blocks of width"
            f" {width}: load the one that the domain names."
        )


def stock_features(info: BackboneInfo, clip_vision: comfy.clip_vision.ClipVisionModel, pictures: Tensor) -> Tensor:
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    device = clip_vision.load_device
    pixels = normalize(pictures.to(device).float(), info).to(_precision(device))
    try:
        with torch.no_grad():
            # Every block's output, before the final norm: (n, blocks, tokens, width).
            vision = clip_vision.model.vision_model
            blocks = vision(pixel_values=pixels, intermediate_output="all")[1]
            return read_vectors(info, lambda number: blocks[:, number - 1], vision.post_layernorm).float().cpu()
    finally:
        unload(clip_vision.patcher)


def _precision(device: torch.device) -> torch.dtype:
    return torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32
