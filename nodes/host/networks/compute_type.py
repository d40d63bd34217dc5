"""In which number type tuning computes, decided in this one place.

Weights, gradients, sums and Adam's moments are float32 everywhere; what enters a matrix product or a convolution is rounded to
bfloat16 where that is faster:

* a graphics card of NVIDIA or AMD that multiplies bfloat16 in hardware: what lies between two products is bfloat16 as well
  (autocast). Norms and losses stay float32.
* a CPU with matrix units (AMX): nothing but the products changes.
* a CPU with vector instructions alone (AVX512-BF16): autocast, because rounding for each product costs what it saves.
* all others (older cards, Apple, Intel, plain CPUs): float32, as it is.
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


def has_card_units(device: torch.device) -> bool:
    """Whether this graphics card multiplies bfloat16 matrices in hardware (NVIDIA from Ampere on; AMD by ROCm's word)."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def uses_autocast(device: torch.device) -> bool:
    """Whether all that lies between two products is bfloat16 on this device, too."""
    if device.type == "cpu":
        return has_vector_instructions() and not has_matrix_units()
    return has_card_units(device)


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
    backends = (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "bf16"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
