"""A word as the embedding file that stock prompts read."""

from __future__ import annotations

import torch
from torch import Tensor

# ComfyUI's text encoders look for their embedding under these names (comfy/sd1_clip.py, comfy/text_encoders/sd2_clip.py).
KEYS = {768: "clip_l", 1024: "clip_h"}


def stock_state(embedding: Tensor) -> dict[str, Tensor]:
    """The tensors of an embedding file for words ``(V, D)``: half the file of float32 would lose nothing, but stays exact.

    Raises:
        ValueError: D is no Stable Diffusion 1.x or 2.x text encoder's.
    """
    width = embedding.shape[-1]
    if width not in KEYS:
        raise ValueError(f"A word of width {width} is none of Stable Diffusion 1.x (768) or 2.x (1024).")
    return {KEYS[width]: embedding.detach().to("cpu", torch.float32).reshape(-1, width).contiguous().clone()}
