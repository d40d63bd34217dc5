"""Checkpoints of a run: one safetensors file each, written whole or not at all, the last few kept.

A file holds what is trained, its average, and the optimizer's moments by parameter name; its metadata the step, the
config and what was counted. Nothing in it is a program.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from e4t_core.files.checked_file import read_header, read_tensors, write_tensors
from e4t_core.files.file_errors import FileError, FileKind

FORMAT = "e4t-pretraining"


class CheckpointError(FileError):
    """A checkpoint that cannot be written or read; the message is one sentence."""


CHECKPOINT = FileKind("Checkpoint", error=CheckpointError)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Attributes:
    step: optimizer steps done.
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
        metadata = {"format": FORMAT, "step": str(step), "record": json.dumps(record, sort_keys=True)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".step-*.tmp"):  # by a process that was killed while it wrote
                left.unlink(missing_ok=True)
            write_tensors(path, tensors, metadata, CHECKPOINT)
        except (OSError, CheckpointError) as error:
            before = f"the one of step {self.steps()[-1]} is intact" if self.steps() else "there is none before it"
            raise CheckpointError(
                f"The checkpoint of step {step} could not be written to {self.folder} ({error.__cause__ or error});"
                f" {before}: make room and start the command again."
            ) from error
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
            header = read_header(path, CHECKPOINT)
            if header.metadata.get("format") != FORMAT:
                raise ValueError(f"its metadata has no format = {FORMAT!r}")
            record = json.loads(header.metadata["record"])
            tensors = read_tensors(path, header.tensors, CHECKPOINT)
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f"Checkpoint {path} could not be read: delete it to go on from the one before. ({error})"
            ) from error
        return Checkpoint(step, tensors, record)
