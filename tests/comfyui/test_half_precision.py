"""Base models in half precision, as most are loaded: tuned and drawn."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from e4t_pack.nodes.host.learning.request import LoadedDomain
from e4t_pack.nodes.personalize import Personalize
from personalized import draw
from world import QUICK, chosen, make_base, photo

from e4t_core.weight_changes import full_differences


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_photo_is_learned_and_drawn(base, domain, dtype):
    half = make_base(dtype=dtype)[0]
    assert half.model_dtype() == dtype
    loaded_domain = LoadedDomain(domain, None)
    model, clip, parts, _ = Personalize.execute(
        half, *base[1:], loaded_domain, photo(), "S*", 1, None, chosen(QUICK)
    ).args
    assert full_differences(parts.weights) and torch.isfinite(torch.tensor(parts.losses)).all()
    with_word, without = draw(model, clip), draw(model, clip, "a photo of a cat")
    assert torch.isfinite(with_word).all() and not torch.equal(with_word, without)


@pytest.mark.parametrize(
    ("flags", "dtype", "attention"),
    [
        ("--force-fp16", "torch.float16", "attention_sub_quad"),
        ("--bf16-unet --use-pytorch-cross-attention", "torch.bfloat16", "attention_pytorch"),
        ("--use-split-cross-attention", "torch.float32", "attention_split"),
    ],
)
def test_a_photo_is_learned_and_drawn_however_comfyui_was_started(flags, dtype, attention):
    script = Path(__file__).with_name("launched.py")
    done = subprocess.run(
        [sys.executable, script, *flags.split()], check=False, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["type"], found["attention"]) == (dtype, attention)
    assert found["learned"] and found["finite"] and found["differs"] and all(map(math.isfinite, found["losses"]))
