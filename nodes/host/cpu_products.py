"""Lets a CPU with matrix units tune several times as fast: float32 tensors, products of bfloat16 numbers.

Everything stays float32 (weights, gradients, sums, Adam's moments); only what enters a matrix product or a convolution is
rounded to bfloat16 on the way into the unit, as TF32 does on a graphics card. A CPU without such units would gain
nothing and is left alone: autocast makes one with AVX512-BF16 faster, but a face tuned under it came out spoilt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def has_matrix_units() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AMX)."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported() and hasattr(torch.backends.mkldnn, "matmul"))


@contextmanager
def bfloat16_products(device: torch.device) -> Iterator[None]:
    """Within it, products on such a CPU use its matrix units; whatever was set before is set again afterwards."""
    if device.type != "cpu" or not has_matrix_units():
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
