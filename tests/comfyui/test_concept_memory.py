"""Concepts that come and go leave nothing behind: neither RAM nor a changed base, nor second files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import kept_by_nodes as kept

ROUNDS = 14
# What is filled once (code, arenas, encoded prompts up to their bound) is not a concept's.
WARM = 4


def test_rounds_of_save_load_apply_draw_and_drop_keep_ram_flat(tmp_path):
    script = Path(kept.__file__).with_name("kept_memory.py")
    done = subprocess.run(
        [sys.executable, str(script), str(ROUNDS), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["unharmed"] and found["pictures"] == ROUNDS and found["held"] == 0
    assert found["files"] == ROUNDS + 1, "a replaced concept's second file stayed"
    # The slope by least squares: a concept that stayed would add its size in every round.
    ram = found["ram"][WARM:]
    middle, mean = (len(ram) - 1) / 2, sum(ram) / len(ram)
    slope = sum((x - middle) * (y - mean) for x, y in enumerate(ram)) / sum((x - middle) ** 2 for x in range(len(ram)))
    assert slope < 0.1 * found["bytes"], f"{slope / 1e6:.2f} MB more in every round: {ram}"
