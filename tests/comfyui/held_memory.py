"""``python held_memory.py``: holds concepts of some hundred MB in a process of its own and prints what that took, as JSON."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import conftest  # noqa: F401 - sets up ComfyUI in this process
import psutil
import torch
from e4t_pack.nodes.host.learning.result_store import ResultStore
from e4t_pack.nodes.host.sampling.held_concept import HeldConcept
from world import QUICK

from e4t_core.concept import Concept
from e4t_core.weight_changes import Full

# As in a UNet: few large kernels and many smaller matrices, 137 MB in float32.
SHAPES = [(1280, 1280, 3, 3)] + [(1280, 1280)] * 11 + [(320, 320)] * 16
KEPT, MADE = 4, 7


def concept(number: int) -> Concept:
    generator = torch.Generator().manual_seed(number)

    def differences() -> Iterator[Full]:
        # One at a time, as a run ends.
        for place, shape in enumerate(SHAPES):
            yield Full.of(f"weight {place}", 2e-5 * torch.randn(shape, generator=generator))

    return Concept("S*", "e4t", str(number), "base", torch.zeros(1, 768), tuple(differences()), QUICK, number)


def _free() -> None:
    gc.collect()
    if sys.platform == "linux":
        # What malloc keeps of freed memory for the next tensors is held by nobody.
        ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    in_float32 = sum(4 * torch.Size(shape).numel() for shape in SHAPES)
    store = ResultStore(limit=KEPT * (in_float32 // 2 + 2**20))
    process = psutil.Process()
    # What the first one takes once (code, threads, buffers) is not a concept's.
    HeldConcept.of(concept(-1), torch.zeros(1, 77, 768), {})
    _free()
    before, sizes = process.memory_info().rss, []
    for number in range(MADE):
        made = concept(number)
        # As a node does it: put away, and held by a MODEL that goes.
        store.remember_held(str(number), HeldConcept.of(made, torch.zeros(1, 77, 768), {}))
        store.put(str(number), made)
        sizes.append(store.size())
    del made
    _free()
    grown = process.memory_info().rss - before
    print(
        json.dumps({"in_float32": in_float32, "grown": grown, "sizes": sizes, "limit": store.limit, "kept": len(store)})
    )


if __name__ == "__main__":
    main()
