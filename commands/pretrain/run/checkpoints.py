"""Checkpoints of a run: one safetensors file each, written whole or not at all, the last few kept.

A file holds what is trained, its average, and the optimiser's moments by parameter name; its metadata the step, the
config and what was counted. Nothing in it is a program.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "e4t-pretraining"


class CheckpointError(OSError):
    """A checkpoint that cannot be written or read; the message is one sentence."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Attributes:
    step: optimiser steps done.
    tensors: by name.
    record: the config and everything else that is not a tensor.
    """

    step: int
    tensors: dict[str, Tensor]
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: made at the first save.
        keep: how many of the latest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """The steps of the checkpoints there are, rising."""
        names = (re.fullmatch(r"step-(\d+)\.safetensors", path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in names if match)

    def path(self, step: int) -> Path:
        """Of the checkpoint after ``step`` steps."""
        return self.folder / f"step-{step:08d}.safetensors"

    def save(self, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Path:
        """Write a checkpoint; only when it is whole do older ones go.

        Raises:
            CheckpointError: it could not be written; the ones before are as they were.
        """
        path = self.path(step)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        metadata = {"format": FORMAT, "step": str(step), "record": json.dumps(record, sort_keys=True)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".step-*.tmp"):  # by a process that was killed while it wrote
                left.unlink(missing_ok=True)
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            before = f"the one of step {self.steps()[-1]} is intact" if self.steps() else "there is none before it"
            raise CheckpointError(
                f"The checkpoint of step {step} could not be written to {self.folder} ({error}); {before}: make room and"
                " start the command again."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        for old in self.steps()[: -self.keep]:
            self.path(old).unlink()
        return path

    def load(self, step: int | None = None) -> Checkpoint | None:
        """The checkpoint of a step, or the latest; None if there is none at all.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        known = self.steps()
        if step is None:
            if not known:
                return None
            step = known[-1]
        path = self.path(step)
        if step not in known:
            raise CheckpointError(f"There is no checkpoint of step {step} in {self.folder}: there are {known}.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"its metadata has no format = {FORMAT!r}")
                record = json.loads(metadata["record"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"Checkpoint {path} could not be read ({error}): delete it to go on from the one before."
            ) from error
        return Checkpoint(step, tensors, record)
