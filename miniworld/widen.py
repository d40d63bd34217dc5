"""Makes a UNet trained at 160 channels 320 channels wide, which stock loaders require, without changing what it computes.

Every channel is doubled in place (0, 0, 1, 1, 2, 2, ...), so that normalization groups and attention heads keep their
members; weights that read doubled channels are halved, and ``to_q`` is divided by sqrt(2) because each dot product of
queries and keys doubles while its scale falls by sqrt(2) only.

Exact twins would get identical gradients, and whatever is tuned later would look like a 160-wide net. ``tie_break``
therefore multiplies the widened weights by (1 + 0.01 noise), from a seed; gates are measured after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

TIE_BREAK = 0.01
_FULL_WIDTH_INPUTS = ("input_blocks.0.0.", "emb_layers.1.", "attn2.to_k.", "attn2.to_v.")


def double(tensor: Tensor, dim: int) -> Tensor:
    """Repeats every entry along ``dim``: 0, 0, 1, 1, ..."""
    return tensor.repeat_interleave(2, dim=dim)


def widen_unet(state: Mapping[str, Tensor], tie_break: float = TIE_BREAK) -> dict[str, Tensor]:
    """A UNet's native state of width 160 -> width 320."""
    wide: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("time_embed."):
            wide[name] = tensor.clone()
        elif name.startswith("out.2."):
            wide[name] = double(tensor, 1) / 2 if tensor.ndim > 1 else tensor.clone()
        elif tensor.ndim == 1 or any(part in name for part in _FULL_WIDTH_INPUTS):
            wide[name] = double(tensor, 0)
        else:
            wide[name] = double(double(tensor, 0), 1) / 2
            if ".to_q." in name:
                wide[name] = wide[name] / 2**0.5
        if tie_break and tensor.ndim > 1 and not name.startswith("time_embed."):
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
            noise = torch.randn(wide[name].shape, generator=torch.Generator().manual_seed(seed))
            wide[name] = wide[name] * (1 + tie_break * noise)
    return wide
