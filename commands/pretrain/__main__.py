"""``python -m commands.pretrain --config CONFIG [section.key=value …]``: pre-train a domain.

On several GPUs or nodes: ``accelerate launch … -m commands.pretrain --config CONFIG``, or ``torchrun -m``. It starts where the
last checkpoint in ``output.folder`` ends; Ctrl-C saves first. At the end the domain file lies in ``output.folder``: put it
into ComfyUI's ``models/e4t_domains``.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError

from commands.base.factories import FactoryError
from commands.base.header import HeaderError
from commands.base.setting_rules import ConfigError
from commands.base.single_file import BaseModelError
from e4t_core.files.domain_file import DomainFileError
from e4t_core.methods.e4t.clip_backbone import BackboneError
from e4t_core.unet import WordError

from .config.config_file import load_config
from .data.pictures import DataError
from .run.checkpoints import CheckpointError
from .run.errors import Stopped, TrainingError
from .run.training import Training
from .validate import validate

log = logging.getLogger(__name__)
STOPPED = 130
FAULTS = (
    BackboneError,
    BaseModelError,
    CheckpointError,
    ConfigError,
    DataError,
    DomainFileError,
    FactoryError,
    HeaderError,
    SafetensorError,
    TrainingError,
    WordError,
    OSError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0, 1 after a fault, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="commands.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="TOML file, or the name of a shipped one")
    parser.add_argument("--dry-run", action="store_true", help="three steps on the real shapes, nothing is written")
    parser.add_argument("--export", action="store_true", help="only write the domain file of the last checkpoint")
    parser.add_argument("--accept-changes", action="store_true", help="go on although settings have changed")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    if options.export and options.dry_run:
        parser.error("--export writes a file and --dry-run writes nothing: give one of them")
    first = int(os.environ.get("RANK", "0")) == 0
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s", stream=sys.stdout)
    try:
        config = load_config(options.config, options.overrides)
        # The other processes meet the same faults when they open the same files.
        findings = validate(config, processes) if first and not options.export else None
        for problem in findings.problems if findings else ():
            log.error("wrong: %s", problem)
        if findings and findings.problems:
            return 1
        for note in findings.notes if findings else ():
            log.info("%s", note)
        training = Training(config, options.accept_changes, options.dry_run)
        if options.export:
            if not training.step:
                raise TrainingError(f"{training.checkpoints.folder} holds no checkpoint: there is nothing to export.")
            path = training.write_domain() if first else None
        else:
            path = training.run()
    except Stopped as stopped:
        log.warning("%s", stopped)
        return STOPPED
    except KeyboardInterrupt:
        log.warning("Stopped; the last checkpoint and what was cached are kept: the same command goes on from there.")
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
    if path is not None:
        log.info("%s is the domain after %d steps: put it into ComfyUI's models/e4t_domains.", path, training.step)
    return 0


def _advice(error: RuntimeError) -> str:
    """What to do about an error of torch that has to do with the machine; empty if it is another."""
    if isinstance(error, torch.OutOfMemoryError):
        return "lower training.micro_batch, or set training.gradient_checkpointing to true"
    if "DataLoader worker" in str(error):
        return "lower data.workers or data.prefetch: memory or /dev/shm has run out, or a worker was killed"
    return ""


if __name__ == "__main__":
    raise SystemExit(main())
