"""The benchmark of the graphics card: it says where there is none, and all of it runs, at tiny shapes on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.gpu import NO_CARD

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".dev" / "comfyui")


def measure(*options: str) -> str:
    """What the command prints in a process that sees no card."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *options],
        check=False, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_card_nothing_is_measured() -> None:
    assert measure().strip() == NO_CARD


@pytest.mark.skipif(not (COMFYUI / "comfy").is_dir(), reason="needs ComfyUI")
def test_all_of_it_runs(tmp_path: Path) -> None:
    sheet = tmp_path / "new folder" / "sheet.png"
    printed = measure("--tiny", "--out", str(sheet))
    rows = [line.split("  ")[0] for line in printed.splitlines() if line]
    for row in (
        "E4T, fast, micro-batch 2",
        "E4T, leanest, micro-batch 1",
        "plain UNet, fast, micro-batch 2",
        "with the word",
        "UNet, two batches of 1",
    ):
        assert row in rows
    with Image.open(sheet) as picture:
        assert picture.size == (2 * 128, 128)
    shares = [float(line.split()[-1]) for line in printed.splitlines() if "seed, learned" in line]
    # One step each: the same inputs on the same device, but for the products that this CPU may shorten to bfloat16.
    other, same = shares
    assert same < 0.05 < other
