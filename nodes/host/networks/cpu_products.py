"""Lets a CPU with bfloat16 instructions tune two to three times as fast.

Weights, gradients, sums and Adam's moments stay float32; what enters a matrix product or a convolution is rounded to
bfloat16, as TF32 rounds it on a graphics card. With matrix units (AMX) nothing else changes. With vector instructions alone
(AVX512-BF16) that rounding costs what it saves, so there what lies between two products is bfloat16 as well (autocast).
A CPU with neither would gain nothing and is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def _supports(name: str) -> bool:
    known = getattr(torch.cpu, f"_is_{name}_supported", None)
    return bool(known and known())


def has_matrix_units() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AMX)."""
    return _supports("amx_tile") and hasattr(torch.backends.mkldnn, "matmul")


def has_vector_instructions() -> bool:
    """Whether this CPU multiplies bfloat16 vectors in hardware (AVX512-BF16)."""
    return _supports("avx512_bf16")


@contextmanager
def bfloat16_products(device: torch.device) -> Iterator[None]:
    """Within it, products on such a CPU are of bfloat16 numbers; whatever was set before is set again afterwards."""
    if device.type != "cpu" or not (has_matrix_units() or has_vector_instructions()):
        yield
        return
    if not has_matrix_units():
        # Autocast keeps what it has rounded until it ends; kept over a step, the weights would be those of the step before.
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            yield
        return
    backends = (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "bf16"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
