"""The mini world's UNet: Stable Diffusion 1.x's building blocks, fewer of them.

Parameter names are those of the original latent-diffusion UNet, so the weights load into any implementation that reads
an SD 1.x checkpoint, once ``widen.py`` has made them 320 channels wide. This module is only for TRAINING; pictures are
sampled by the host's own UNet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STOCK_WIDTH = 320
TIME_WIDTH = 4 * STOCK_WIDTH


@dataclass(frozen=True)
class UNetShape:
    """How many blocks of what kind. Stock loaders accept any of these as SD 1.5 once the width is 320.

    Attributes:
        width: channels everywhere; 160 trains in half the time and widens exactly to 320.
        input_depths: transformer blocks behind each input-side residual block, per level.
        output_depths: likewise on the output side, which has one more residual block a level (top level first).
        middle_depth: transformer blocks in the middle; -1: one residual block only.
    """

    width: int = 160
    input_depths: tuple[tuple[int, ...], ...] = ((0,), (1,))
    output_depths: tuple[tuple[int, ...], ...] = ((0, 0), (1, 1))
    middle_depth: int = 1
    heads: int = 8
    context: int = 768
    latent_channels: int = 4


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding (cosines first) of timesteps ``(B,)`` in 0-999 -> ``(B, width)``."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class GroupNorm(nn.GroupNorm):
    """Normalizes in the contiguous layout: on a CPU that is ten times as fast as in channels-last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(32, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outputs))
        self.out_layers = nn.Sequential(
            GroupNorm(32, outputs), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context

        def split(y: Tensor) -> Tensor:
            return y.view(y.shape[0], y.shape[1], self.heads, -1).transpose(1, 2)

        q, k, v = split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))
        # Spelled out: on a CPU the backward pass of the fused attention costs ten times as much at these sizes.
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.to_out((weights.to(v.dtype) @ v).transpose(1, 2).reshape(x.shape))


class GEGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Dropout(0.0), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1 = Attention(width, width, heads)
        self.attn2 = Attention(width, context, heads)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, context: int, heads: int, depth: int) -> None:
        super().__init__()
        self.norm = GroupNorm(32, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(width, context, heads) for _ in range(depth))
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(b, h * w, c)
        for block in self.transformer_blocks:
            y = block(y, context)
        return x + self.proj_out(y.reshape(b, h, w, c).permute(0, 3, 1, 2))


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Stage(nn.Sequential):
    """A row of layers, each called with what it takes."""

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, embedding)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class UNetModel(nn.Module):
    """Predicts the noise in a latent ``(B, 4, h, w)`` at timesteps ``(B,)`` under a context ``(B, T, 768)``."""

    def __init__(self, shape: UNetShape = UNetShape()) -> None:
        super().__init__()
        self.shape = shape
        width, embedding = shape.width, TIME_WIDTH

        def transformers(depth: int) -> list[nn.Module]:
            return [SpatialTransformer(width, shape.context, shape.heads, depth)] if depth > 0 else []

        self.time_embed = nn.Sequential(nn.Linear(STOCK_WIDTH, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(shape.latent_channels, width, 3, padding=1))])
        for level, depths in enumerate(shape.input_depths):
            for depth in depths:
                self.input_blocks.append(Stage(ResBlock(width, width, embedding), *transformers(depth)))
            if level < len(shape.input_depths) - 1:
                self.input_blocks.append(Stage(Downsample(width)))
        middle: list[nn.Module] = [ResBlock(width, width, embedding)]
        if shape.middle_depth >= 0:
            middle += [*transformers(shape.middle_depth), ResBlock(width, width, embedding)]
        self.middle_block = Stage(*middle)
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(shape.output_depths))):
            depths = shape.output_depths[level]
            for i, depth in enumerate(depths):
                layers: list[nn.Module] = [ResBlock(2 * width, width, embedding), *transformers(depth)]
                if level and i == len(depths) - 1:
                    layers.append(Upsample(width))
                self.output_blocks.append(Stage(*layers))
        self.out = nn.Sequential(GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, shape.latent_channels, 3, padding=1))

    def encode(self, x: Tensor, timesteps: Tensor, context: Tensor) -> tuple[list[Tensor], Tensor]:
        """The down half and the middle: every down-block output and the time embedding; the middle comes last."""
        embedding = self.time_embed(timestep_embedding(timesteps, STOCK_WIDTH).to(x.dtype))
        outputs = []
        for stage in (*self.input_blocks, self.middle_block):
            x = stage(x, embedding, context)
            outputs.append(x)
        return outputs, embedding

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        skips, embedding = self.encode(x, timesteps, context)
        h = skips.pop()
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding, context)
        return self.out(h)
