"""``python kept_memory.py ROUNDS FOLDER``: saves, loads, applies, draws and drops concepts, and prints RAM as JSON.

A process of its own, so that no other test's memory counts.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import kept_by_nodes as kept
import psutil
import torch
from e4t_pack.nodes.host.learning.result_store import STORE
from e4t_pack.nodes.host.networks.base_model import ComfyUNet
from personalized import draw
from world import make_base, make_domain


def _ram() -> int:
    gc.collect()
    if sys.platform == "linux":
        # What malloc keeps of freed memory for the next tensors is held by nobody.
        ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss


def _state(base) -> dict[str, torch.Tensor]:
    import comfy.model_management

    comfy.model_management.unload_all_models()
    modules = {"unet": base[0].model, "clip": base[1].cond_stage_model}
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def main() -> None:
    rounds, folder = int(sys.argv[1]), Path(sys.argv[2])
    kept.use(kept.Places(folder / "embeddings" / "e4t", folder / "e4t_concepts", folder / "e4t_domains"))
    base = make_base(embeddings=folder / "embeddings")
    domain = make_domain(ComfyUNet(base[0]))
    before = {key: value.clone() for key, value in _state(base).items()}
    ram, pictures = [], set()
    with torch.inference_mode():
        for number in range(rounds):
            kept.save(kept.known_concept(domain, number), f"concept_{number}")
            concept = kept.load(f"concept_{number}")
            model, clip, given = kept.apply(base, concept)
            pictures.add(kept.hash_of(draw(model, clip, steps=1)))
            kept.save(given, "last", overwrite=True)
            del concept, model, clip, given
            ram.append(_ram())
    after = _state(base)
    print(
        json.dumps({
            "ram": ram,
            "pictures": len(pictures),
            "held": len(STORE) + len(STORE._held),
            "unharmed": before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before),
            "files": len(list((folder / "e4t_concepts").iterdir())),
            "bytes": sum(path.stat().st_size for path in (folder / "e4t_concepts").glob("last.*")),
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
