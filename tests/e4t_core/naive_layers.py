"""The tiny network written out, with whatever keys and values its cross-attention layers are given."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from tiny import TinyUNet
from torch import Tensor, nn

# Number of a layer, and its attention -> keys and values ``(B, L, M)``.
KeysAndValues = Callable[[int, nn.Module], tuple[Tensor, Tensor]]


def naive_prediction(unet: TinyUNet, z: Tensor, t: Tensor, read: KeysAndValues) -> Tensor:
    """The whole network, its cross-attention layers reading what they are given."""
    net = unet.network
    time = net.time_embedding(torch.cos(t.to(z)[:, None] / 1000 * z.new_tensor([1.0, 5.0])))
    x = F.silu(net.down_blocks[0].conv(net.conv_in(z) + time[:, :, None, None]))
    for number, transformer in enumerate(net.down_blocks[0].attentions):
        block, flat = transformer.transformer_blocks[0], x.flatten(2).transpose(1, 2)
        own = block.attn1
        flat = flat + attended(flat @ own.to_q.weight.T, flat @ own.to_k.weight.T, flat @ own.to_v.weight.T)
        flat = flat + attended(flat @ block.attn2.to_q.weight.T, *read(number, block.attn2))
        x = flat.transpose(1, 2).reshape(x.shape)
    return F.pixel_shuffle(net.conv_out(F.silu(net.mid_block(x))), 2)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1) @ v


def naive_error(unet: TinyUNet, latents: Tensor, mask: Tensor, noise: Tensor, t: Tensor, read: KeysAndValues) -> Tensor:
    """The diffusion loss of one sample ``(4, h, w)``."""
    kept = unet.schedule.alphas_cumprod[t].to(latents)
    z = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    error = naive_prediction(unet, z[None], t[None], read)[0] - noise
    return (error.square() * mask / mask.mean()).mean()
