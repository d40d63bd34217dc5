"""Quick pre-training runs, in process and as the command, and what they log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from small_base import config_of, overrides
from torch import Tensor

from commands.pretrain.run.training import Training

ROOT = Path(__file__).parents[2]


def train(place: Path, out: Path, *more: str) -> dict[str, Tensor]:
    """The trained weights at the end of a run, by name."""
    training = Training(config_of(place, out, *more))
    training.run()
    AcceleratorState._reset_state(reset_partial_state=True)
    return {name: value.detach().clone() for name, value in training.encoder_and_offsets.state_dict().items()}


def losses(out: Path, name: str = "loss") -> list[float]:
    return [json.loads(line)[name] for line in (out / "log.jsonl").read_text().splitlines()]


def start(place: Path, out: Path, *more: str, processes: int = 1) -> subprocess.Popen[str]:
    """The command as a user starts it, one thread per process."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", f"--nproc-per-node={processes}", "--standalone", "-m"]
    command += ["commands.pretrain", "--config", "face", *overrides(place, out), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a group of its own, which can be signalled
    )


def wait_for_steps(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 180
    while not (out / "log.jsonl").exists() or len(losses(out)) < count:
        assert process.poll() is None and time.monotonic() < limit, process.communicate()[0]
        time.sleep(0.05)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
