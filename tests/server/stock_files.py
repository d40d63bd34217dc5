"""Files that stock nodes of the shipped workflows load, made from a fixed seed: a LoRA, a ControlNet and a face finder.

They are of the right shapes and do something, but know nothing: the LoRA and the ControlNet are random, and the face finder
sees a face of half the picture's height in the middle of every picture.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

UNET = "model.diffusion_model."
WIDTH = 320
HINT_CHANNELS = (3, 16, 16, 32, 32, 96, 96, 256, WIDTH)
"""Of a ControlNet's small network that reads the hint: eight convolutions, and a SiLU between two of them."""
LANDMARKS = 478
RINGS = ("face_oval", "left_eye", "right_eye", "left_eyebrow", "right_eyebrow", "lips", "irises", "nose", "tesselation")
RING = 36
"""Landmarks of each ring."""
MESH = 192
"""Side of the square that landmarks are told in; its middle is the face's."""
WHOLE = 8.0
"""Side of the found box in sides of the picture: so large that every place finds the same one, in the middle."""


def write_lora(path: Path, checkpoint: Path, rank: int = 2) -> None:
    """A LoRA on every cross-attention of the UNet in ``checkpoint``."""
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = {}
    for name, (rows, columns) in _shapes(checkpoint, "attn2.to_k.weight", "attn2.to_v.weight").items():
        key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        state[f"{key}.lora_up.weight"] = 0.05 * torch.randn(rows, rank, generator=generator)
        state[f"{key}.lora_down.weight"] = 0.05 * torch.randn(rank, columns, generator=generator)
        state[f"{key}.alpha"] = torch.tensor(float(rank))
    _save(path, state)


def write_controlnet(path: Path, checkpoint: Path) -> None:
    """A ControlNet: the input side of the UNet in ``checkpoint``, and random convolutions around it."""
    generator = torch.Generator().manual_seed(2)
    with safe_open(checkpoint, "pt") as file:
        keys = [key for key in file.keys() if key.startswith(UNET)]  # noqa: SIM118 - safe_open is no mapping
        state = {
            key.removeprefix(UNET): file.get_tensor(key)
            for key in keys
            if key.removeprefix(UNET).startswith(("input_blocks.", "middle_block.", "time_embed."))
        }
    outputs = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("input_blocks."))
    for name in (*(f"zero_convs.{number}.0" for number in range(outputs)), "middle_block_out.0"):
        state[f"{name}.weight"] = 0.01 * torch.randn(WIDTH, WIDTH, 1, 1, generator=generator)
        state[f"{name}.bias"] = torch.zeros(WIDTH)
    for number, (read, written) in enumerate(pairwise(HINT_CHANNELS)):
        state[f"input_hint_block.{2 * number}.weight"] = torch.randn(written, read, 3, 3, generator=generator) / (
            3 * math.sqrt(read)
        )
        state[f"input_hint_block.{2 * number}.bias"] = torch.zeros(written)
    _save(path, {name: tensor.half() for name, tensor in state.items()})


def write_face_finder(path: Path) -> None:
    """Weights of the stock face nodes by which everything has the same face, whatever the picture shows."""
    box = torch.zeros(6, 16)
    # Center, size, and six points of the face, of which the eyes tell how it is turned: side by side.
    box[:, 2:4] = WHOLE * 128
    box[:, 4], box[:, 6] = -64.0, 64.0
    # What the last layers say without looking at what comes before them. The finder for far faces finds none.
    state = {
        "detector_short.cls_16.weight": torch.zeros(2, 88, 1, 1),
        "detector_short.cls_16.bias": torch.full((2,), -100.0),
        "detector_short.cls_8.weight": torch.zeros(6, 96, 1, 1),
        "detector_short.cls_8.bias": torch.full((6,), 10.0),
        "detector_short.reg_8.weight": torch.zeros(96, 96, 1, 1),
        "detector_short.reg_8.bias": box.flatten(),
        "detector_full.cls_dw.weight": torch.zeros(4, 1, 3, 3),
        "detector_full.cls_dw.bias": torch.full((4,), -100.0),
        "mesh.head_landmarks.weight": torch.zeros(3 * LANDMARKS, 8, 3, 3),
        "mesh.head_landmarks.bias": _face().flatten(),
        "canonical_vertices": _face()[:468],
        "procrustes_indices": torch.arange(33, dtype=torch.int32),
        "procrustes_weights": torch.ones(33),
        **{f"topology.{ring}": _ring(number) for number, ring in enumerate(RINGS)},
    }
    _save(path, state)


def _face() -> Tensor:
    """Landmarks ``(478, 3)``: rings around the middle, the first half of the picture's height high, and the others smaller."""
    # The nodes look at one and a half times the box.
    scale = MESH / (1.5 * WHOLE)
    points = torch.full((LANDMARKS, 3), MESH / 2)
    for number in range(len(RINGS)):
        angles = 2 * math.pi * torch.arange(RING) / RING
        radius = scale * (0.25 if number == 0 else 0.1)
        rows = slice(number * RING, (number + 1) * RING)
        points[rows, 0] += 0.8 * radius * angles.cos()
        points[rows, 1] += radius * angles.sin()
        points[rows, 2] = scale * 0.01 * torch.arange(RING)
    return points


def _ring(number: int) -> Tensor:
    """Edges ``(36, 2)`` between landmarks and their neighbors."""
    start = torch.arange(RING, dtype=torch.int32)
    return RING * number + torch.stack([start, (start + 1) % RING], 1)


def _shapes(checkpoint: Path, *ends: str) -> dict[str, tuple[int, int]]:
    """Name in the UNet -> shape, of its matrices whose names end so."""
    with safe_open(checkpoint, "pt") as file:
        return {
            key.removeprefix(UNET): tuple(file.get_slice(key).get_shape())
            for key in file.keys()  # noqa: SIM118 - safe_open is no mapping
            if key.startswith(UNET) and key.endswith(ends)
        }


def _save(path: Path, state: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
