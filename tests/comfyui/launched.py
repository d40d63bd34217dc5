"""``python launched.py FLAG ...``: learns a photo and draws it in a ComfyUI that was started with these flags.

A process of its own, because ComfyUI reads its flags once, when it is imported. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.argv[1:] = ["--cpu", *sys.argv[1:]]
sys.path[:0] = [os.environ.get("COMFYUI_PATH") or str(ROOT / ".dev" / "comfyui"), str(Path(__file__).parent)]

import comfy.options

comfy.options.enable_args_parsing()

import conftest  # noqa: F401 - sets up ComfyUI in this process


def main() -> None:
    import torch
    from comfy.ldm.modules import attention
    from e4t_pack.nodes.host.learning.request import LoadedDomain
    from e4t_pack.nodes.host.networks.base_model import ComfyUNet
    from e4t_pack.nodes.personalize import Personalize
    from personalized import draw
    from world import QUICK, chosen, make_base, make_domain, photo

    from e4t_core.weight_changes import full_differences

    with torch.inference_mode():
        base = make_base()
        domain = make_domain(ComfyUNet(base[0]))
        model, clip, concept, _ = Personalize.execute(
            *base, LoadedDomain(domain, None), photo(), "S*", 1, None, chosen(QUICK)
        ).args
        with_word, without = draw(model, clip), draw(model, clip, "a photo of a cat")
    print(
        json.dumps({
            "type": str(base[0].model_dtype()),
            "attention": attention.optimized_attention.__name__,
            "losses": concept.losses,
            "learned": len(full_differences(concept.weights)),
            "finite": bool(torch.isfinite(with_word).all() and torch.isfinite(without).all()),
            "differs": not torch.equal(with_word, without),
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
