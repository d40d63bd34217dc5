"""The benchmark of costs: all of it runs at the mini world's shapes, and a trace agrees with what a real run allocates."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.cost import CATEGORIES
from benchmarks.fake_world import CARD, RAM, set_to
from benchmarks.operations import Operations

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".dev" / "comfyui")


@pytest.mark.skipif(not (COMFYUI / "comfy").is_dir(), reason="needs ComfyUI")
def test_all_of_it_runs_and_agrees_with_a_real_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cost", "--tiny", "--plans", "leanest", "--processes", "1"],
        check=False, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split("  ") for line in done.stdout.splitlines() if line]
    rows = {row[0]: row for row in lines}
    for name in (
        "working weights",
        "masters",
        "moments",
        "offsets, encoder",
        "text encoder",
        "ComfyUI's copy",
        "concept",
    ):
        assert name in rows, f"{name} is in none of the tables"
    for name in ("empty negative prompt", "another negative prompt", "without guidance (CFG 1)"):
        assert float(rows[name][-1]) > 1
    split = [line.split() for line in done.stdout.splitlines()]
    looked = [[float(cell) for cell in row] for row in split if row[:1] in (["16"], ["1"]) and len(row) == 6]
    assert len(looked) == 2, "the search, sixteen squares together and one by one"
    for _, card, _, look, check, confirm in looked:
        assert card > 0 and 0 < look < check < confirm
    assert any(line[0] == "met" and "as traced" in "".join(line) for line in lines)
    assert not any("NOT MET" in line[0] for line in lines)
    rest = [float(row[-1]) for row in lines if row[0] == "the rest"]
    assert len(rest) == 2 and max(rest) < 0.02, "what is at the peak has a name"


def test_every_place_that_memory_is_named_after_exists() -> None:
    """A file that is renamed would fall to the rest without a word."""
    for ours, _, name in CATEGORIES:
        file, _, function = ours.partition(":")
        found = [path for path in ROOT.rglob(f"*{file}") if ".dev" not in path.parts and ".venv" not in path.parts]
        if file.endswith(".py"):
            assert found, f"{file} of {name!r} is gone"
            assert function.rpartition(".")[2] in "".join(path.read_text(encoding="utf-8") for path in found), ours


def test_operations_are_products_and_attention_forward_and_backward() -> None:
    with Operations() as counted:
        a = torch.zeros(3, 5, requires_grad=True)
        (a @ torch.zeros(5, 7)).sum().backward()
    assert counted.total == 2 * (2 * 3 * 5 * 7)
    query = torch.zeros(1, 2, 16, 8, requires_grad=True)
    with Operations() as forward:
        out = nn.functional.scaled_dot_product_attention(query, query, query)
    assert forward.total == 2 * (2 * 2 * 16 * 16 * 8)
    with Operations() as backward:
        out.sum().backward()
    assert backward.total == forward.total * 5 / 2, (
        "three products of the forward's kind are its gradients, two are made again"
    )
    with torch.inference_mode(), Operations() as counted:
        nn.Linear(5, 7)(torch.zeros(3, 5))
    assert counted.total == 2 * 3 * 5 * 7


def test_what_is_set_for_a_trace_is_as_before_afterwards() -> None:
    class Owner(nn.Module):
        own = 1

    with pytest.raises(KeyError), set_to(Owner, own=2, forward=None, new=3):
        assert (Owner.own, Owner.forward, Owner.new) == (2, None, 3)  # type: ignore[attr-defined]
        raise KeyError
    assert Owner.own == 1 and Owner.forward is nn.Module.forward and not hasattr(Owner, "new")
    assert CARD != RAM
