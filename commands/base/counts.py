"""Parameters, floating-point operations and activations of a network, from the shapes of its weights.

One multiply-add is two operations, as ``torch.utils.flop_counter`` counts. A weight of n numbers costs 2n operations per
position that it is applied at; an attention over K positions costs 4·L·K·d besides. Norms, activations and additions are
left out.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass

from .header import Shapes

PROMPT_LENGTH = 77
DOWNSAMPLERS = re.compile(r"downsampl(?:ers|e)\.")
UPSAMPLERS = re.compile(r"upsampl(?:ers|e)\.")


def parameters(shapes: Shapes) -> int:
    """How many numbers the weights hold."""
    return sum(math.prod(shape) for shape in shapes.values())


@dataclass(frozen=True)
class UNetCounts:
    """Of one sample's pass.

    Attributes:
        parameters: of the UNet.
        projections: names of the attention matrices that get offsets -> (M out, N in).
        feature_width: of the pooled features.
        context_width: of the prompts.
        in_channels: of the latent (4; 9 for inpainting).
        forward: operations of a whole pass.
        features: operations of the pass to the middle block.
        projection_gradients: operations to get the gradients of the attention matrices in a whole pass.
        activations: numbers that a whole pass keeps for its backward pass.
        checkpointed: the same with gradient checkpointing of every residual block and transformer.
    """

    parameters: int
    projections: dict[str, tuple[int, int]]
    feature_width: int
    context_width: int
    in_channels: int
    forward: int
    features: int
    projection_gradients: int
    activations: int
    checkpointed: int


def count_unet(shapes: Shapes, latent: tuple[int, int]) -> UNetCounts:
    """Counts of a UNet with canonical names at a latent of (height, width).

    Raises:
        ValueError: the names are not those of a Stable Diffusion UNet.
    """
    if "conv_in.weight" not in shapes or not any(name.startswith("mid_block.") for name in shapes):
        raise ValueError("it has no conv_in and mid_block")
    levels = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("down_blocks."))
    projections: dict[str, tuple[int, int]] = {}
    forward = features = gradients = 0
    kept: defaultdict[str, int] = defaultdict(int)
    boundaries: dict[str, int] = {}
    widths = {"conv_in": shapes["conv_in.weight"][0]}
    context_width = 0
    for name, shape in shapes.items():
        if len(shape) < 2 or not name.endswith(".weight"):
            continue
        positions, keys = _positions(name, levels, latent)
        operations = 2 * math.prod(shape) * positions
        matrix = re.search(r"\.(attn[12])\.to_([qkv])\.weight$", name)
        if matrix:
            projections[name] = (shape[0], shape[1])
            gradients += operations
            if matrix[1] == "attn2" and matrix[2] == "k":
                context_width = shape[1]
            if matrix[2] == "q":
                operations += 4 * positions * (PROMPT_LENGTH if matrix[1] == "attn2" else keys) * shape[0]
        forward += operations
        if name.startswith(("conv_in.", "down_blocks.", "mid_block.", "time_embedding.")):
            features += operations
        block = re.match(r"((?:down|up)_blocks\.\d+\.\w+\.\d+|mid_block\.\w+\.\d+|\w+)\.", name)
        owner = block[1] if block else name
        kept[owner] += 2 * shape[0] * positions  # what the layer gives, and what the norm or nonlinearity makes of it
        if name.endswith((".conv2.weight", ".proj_out.weight", "samplers.0.conv.weight")):
            boundaries[owner] = shape[0] * positions
        if re.match(r"down_blocks\.\d+\.(resnets\.\d+\.conv2|downsamplers\.\d+\.conv)\.weight$", name):
            widths[name.rsplit(".", 2)[0]] = shape[0]
    middle = [s[0] for name, s in shapes.items() if re.match(r"mid_block\.resnets\.\d+\.conv2\.weight$", name)]
    if not (projections and middle):
        raise ValueError("it has no attention or no middle block")
    return UNetCounts(
        parameters=parameters(shapes),
        projections=projections,
        feature_width=sum(widths.values()) + middle[-1],
        context_width=context_width,
        in_channels=shapes["conv_in.weight"][1],
        forward=forward,
        features=features,
        projection_gradients=gradients,
        activations=sum(kept.values()),
        checkpointed=sum(boundaries.values()) + max(kept.values()),
    )


def _positions(name: str, levels: int, latent: tuple[int, int]) -> tuple[int, int]:
    """At how many positions a weight is applied, and how many there are at its level."""
    if name.startswith("down_blocks."):
        level = int(name.split(".")[1]) + bool(DOWNSAMPLERS.search(name))
    elif name.startswith("mid_block."):
        level = levels - 1
    elif name.startswith("up_blocks."):
        level = levels - 1 - int(name.split(".")[1]) - bool(UPSAMPLERS.search(name))
    else:
        level = 0
    height, width = (-(-side // 2**level) for side in latent)
    whole = height * width
    if name.startswith(("time_embedding.", "class_embedding.")) or ".time_emb_proj." in name:
        return 1, whole
    if re.search(r"\.attn2\.to_[kv]\.", name):
        return PROMPT_LENGTH, whole
    return whole, whole


def count_vae_encoder(shapes: Shapes, image: int) -> int:
    """Operations to encode an image of ``image`` pixels a side; ``shapes`` by diffusers' or the native names.

    0 if there is no such encoder (a tiny autoencoder, say).
    """
    encoder = {name: shape for name, shape in shapes.items() if name.startswith("encoder.")}
    down = [re.match(r"encoder\.down(?:_blocks)?\.(\d+)\.", name) for name in encoder]
    numbers = [int(match[1]) for match in down if match]
    if not numbers:
        return 0
    total = 0
    for name, shape in encoder.items():
        if len(shape) < 2:
            continue
        match = re.match(r"encoder\.down(?:_blocks)?\.(\d+)\.", name)
        if match:
            level = int(match[1]) + bool(DOWNSAMPLERS.search(name))
        else:
            level = 0 if name.startswith("encoder.conv_in.") else max(numbers)
        positions = (image // 2**level) ** 2
        total += 2 * math.prod(shape) * positions
        if re.search(r"\.(q|to_q|query)\.weight$", name):
            total += 4 * positions * positions * shape[0]
    return total


def count_transformer(shapes: Shapes, tokens: int, width: int) -> int:
    """Operations of a transformer's blocks at ``tokens`` positions; ``shapes`` of its blocks alone."""
    matrices = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)
    numbers = {int(match[1]) for match in (re.search(r"\.(\d+)\.", f".{name}") for name in shapes) if match}
    return 2 * matrices * tokens + 4 * tokens * tokens * width * len(numbers)
