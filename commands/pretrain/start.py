"""Starts a run on one of its processes: checks it, trains or exports, and says in a sentence what went wrong."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError

from commands.base.factories import FactoryError
from commands.base.settings import ConfigError
from commands.base.single_file import BaseModelError
from commands.interruptible import STOPPED
from e4t_core.files.domain_file import DomainFileError
from e4t_core.methods.e4t.clip_backbone import BackboneError
from e4t_core.unet import WordError

from .checks import validate
from .config.config_file import load_config
from .data.pictures import DataError
from .run.checkpoints import CheckpointError
from .run.errors import Stopped, TrainingError
from .run.training import Training

log = logging.getLogger(__name__)
FAULTS = (
    BackboneError,
    BaseModelError,
    CheckpointError,
    ConfigError,
    DataError,
    DomainFileError,
    FactoryError,
    SafetensorError,
    TrainingError,
    WordError,
    OSError,
)


def start(path: Path, overrides: Sequence[str], *, export: bool, dry: bool, accept: bool) -> int:
    """Check and do a run.

    Args:
        path: of the config.
        overrides: "section.key=value".
        export: only write the domain file of the last checkpoint.
        dry: three steps, nothing is written.
        accept: go on although settings have changed.

    Returns:
        The command's exit status: 0, 1 after a fault, 130 after a stop.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s", stream=sys.stdout)
    try:
        config = load_config(path, overrides)
        # The other processes meet the same faults when they open the same files.
        findings = validate(config, processes) if first and not export else None
        for problem in findings.problems if findings else ():
            log.error("wrong: %s", problem)
        if findings and findings.problems:
            return 1
        for note in findings.notes if findings else ():
            log.info("%s", note)
        training = Training(config, accept, dry)
        if export:
            if not training.step:
                raise TrainingError(f"{training.checkpoints.folder} holds no checkpoint: there is nothing to export.")
            written = training.write_domain() if first else None
        else:
            written = training.run()
    except Stopped as stopped:
        log.warning("%s", stopped)
        return STOPPED
    except FAULTS as error:
        log.error("wrong: %s", error)
        return 1
    except RuntimeError as error:
        advice = _advice(error)
        if not advice:
            raise
        log.error("wrong: %s: %s", " ".join(str(error).split())[:200], advice)
        return 1
    if written is not None:
        log.info("%s is the domain after %d steps: put it into ComfyUI's models/e4t_domains.", written, training.step)
    return 0


def _advice(error: RuntimeError) -> str:
    """What to do about an error of torch that has to do with the machine; empty if it is another."""
    if isinstance(error, torch.OutOfMemoryError):
        return "lower training.micro_batch, or set training.gradient_checkpointing to true"
    if "DataLoader worker" in str(error):
        return "lower data.workers or data.prefetch: memory or /dev/shm has run out, or a worker was killed"
    return ""
