"""In which number type tuning computes, decided in this one place.

Masters, AdamW's arithmetic, ``1 + P Q^T``, sums and losses are float32 everywhere. What the UNet computes with is rounded
once per optimizer step to

* bfloat16 on a graphics card that ComfyUI would run in it (NVIDIA from Ampere on, AMD from RDNA 3 on, Intel, Apple from
  macOS 14 on);
* float16 on one that it would run in that only (NVIDIA Turing and older, AMD RDNA 2 and older); losses are scaled, so that
  no gradient is rounded to zero;
* float32 on all others, with ``--force-fp32``, and on the CPU.

Text encoder and word predictor compute under autocast to bfloat16 where the UNet does, else in float32. A CPU with matrix
units (AMX) multiplies bfloat16 and changes nothing else; one with vector instructions alone (AVX512-BF16) runs under
autocast, because rounding for each product would cost what it saves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch

# Kinds of device whose PyTorch has all that a backward pass in half precision needs.
CARDS = ("cuda", "xpu", "mps")


def compute_type(device: torch.device) -> torch.dtype:
    """The number type that the UNet computes in while a concept is learned on this device."""
    if device.type not in CARDS:
        return torch.float32
    if comfy.model_management.should_use_bf16(device):
        return torch.bfloat16
    if comfy.model_management.should_use_fp16(device):
        return torch.float16
    return torch.float32


def _supports(name: str) -> bool:
    known = getattr(torch.cpu, f"_is_{name}_supported", None)
    return bool(known and known())


def has_matrix_units() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AMX)."""
    return _supports("amx_tile") and hasattr(torch.backends.mkldnn, "matmul")


def has_vector_instructions() -> bool:
    """Whether this CPU multiplies bfloat16 vectors in hardware (AVX512-BF16)."""
    return _supports("avx512_bf16")


def uses_autocast(device: torch.device) -> bool:
    """Whether text encoder and word predictor compute under autocast to bfloat16; on a CPU the UNet, too."""
    if device.type == "cpu":
        return has_vector_instructions() and not has_matrix_units()
    return compute_type(device) == torch.bfloat16


@contextmanager
def bfloat16_products(device: torch.device) -> Iterator[None]:
    """Within it, products on such a device are of bfloat16 numbers; whatever was set before is set again afterwards."""
    if uses_autocast(device):
        # Autocast keeps what it has rounded until it ends; kept over a step, the weights would be those of the step before.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            yield
        return
    if device.type != "cpu" or not has_matrix_units():
        yield
        return
    mkldnn: Any = torch.backends.mkldnn  # PyTorch puts an object in the module's place: these two are its attributes
    backends = (mkldnn.matmul, mkldnn.conv)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "bf16"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
