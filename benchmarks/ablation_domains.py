"""Shortened pre-trainings for the ablations that need one of their own, equal in all but the ablation's fields.

They follow the shipped face domain's config, ``mini_face``, with fewer steps and a warm-up in proportion. Each is run by
``commands.pretrain`` in a process of its own and goes on where it stopped; photos' features are computed once for all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from commands.pretrain.config.sections import Config
from e4t_core.files.domain_file import load_domain
from miniworld.domains import CONFIGS, config_of
from miniworld.presets import PRESETS

from . import host
from .ablation_arms import Ablation

DOMAIN = "faces"
STEPS, WARMUP = 600, 40
"""Of the shipped domain's 3000 and 200."""
FOLDER = host.ROOT / "runs" / "ablations"


def overrides(arm: Ablation, steps: int = STEPS) -> list[str]:
    """What the arm's pre-training has other than the shipped config; ``arm.pretraining`` is not None."""
    assert arm.pretraining is not None
    place = FOLDER / f"pretrained-{steps}" / (arm.of or arm.name).replace(" ", "-")
    common = {
        "training.steps": steps,
        "training.warmup": round(WARMUP * steps / STEPS),
        "output.folder": str(place),
        "output.preview_every": 0,
        "output.checkpoint_every": 25,
        "data.cache_folder": str(FOLDER / "features"),
    }
    own = {f"training.{name}": value for name, value in arm.pretraining.items()}
    return [f"{key}={_toml(value)}" for key, value in (common | own).items()]


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def config(arm: Ablation, steps: int = STEPS) -> Config:
    """The arm's pre-training."""
    return config_of(DOMAIN, *overrides(arm, steps))


def domain_file(arm: Ablation, steps: int = STEPS) -> Path:
    """Where the arm's domain lies once it is trained."""
    of = config(arm, steps)
    return Path(of.output.folder) / f"{of.domain.name}.safetensors"


class Unfinished(RuntimeError):
    """A pre-training that is not at its end; the message says what to do."""


def pretrain(arm: Ablation, until: float, steps: int = STEPS) -> Path:
    """The arm's domain file, trained now as far as it is not yet.

    Args:
        until: by ``time.monotonic()``; then it is asked to stop, which saves a checkpoint.

    Raises:
        Unfinished: it was stopped, or failed.
    """
    path = domain_file(arm, steps)
    if path.exists():
        return path
    command = [sys.executable, "-m", "commands.pretrain", "--config", CONFIGS[DOMAIN], *overrides(arm, steps)]
    # PyTorch's threads in the child are this process's.
    process = subprocess.Popen(command, cwd=host.ROOT, env=os.environ | {"OMP_NUM_THREADS": str(_threads())})
    try:
        code = process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    if code or not path.exists():
        raise Unfinished(f"The pre-training of {arm.name!r} is not finished: the same command goes on.")
    return path


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def loaded(path: Path) -> Any:
    """A domain file as its node loads it, tuned by the mini world's preset as the shipped domain is."""
    domain = load_domain(path)
    info = replace(domain.info, preset=PRESETS[DOMAIN])
    return host.pack("nodes.host.learning.request").LoadedDomain(replace(domain, info=info))
