"""The log of a run: a line of JSON per interval, TensorBoard beside it, and a progress bar."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commands.pretrain.data.pictures import DataError
from commands.progress import Progress
from e4t_core.files.whole_file import replacing


class Journal:
    """Written by the first process alone.

    Args:
        folder: gets ``log.jsonl``, and ``tensorboard`` if that is asked for.
        steps, done: of the progress bar.
        tensorboard: also write event files.

    Raises:
        DataError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, steps: int, done: int, tensorboard: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._drop_after(folder / "log.jsonl", done)
        self._file = open(folder / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise DataError(
                    "output.tensorboard is true, but the package tensorboard is not installed: run 'pip install tensorboard',"
                    " or set it to false."
                ) from error
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
        self._bar = Progress(total=steps, initial=done, desc="pre-training", mininterval=2)

    @staticmethod
    def _drop_after(path: Path, done: int) -> None:
        """Lines of steps that a killed run did after its last checkpoint, and that are done again."""
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= done]
        if kept != lines:
            with replacing(path) as part:
                part.write_text("".join(kept), encoding="utf-8")

    def advance(self) -> None:
        """One step is done."""
        self._bar.update()

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Log the figures of an interval that ended with ``step``."""
        self._file.write(json.dumps({"step": step} | {name: float(f"{v:.7g}") for name, v in figures.items()}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)
        self._bar.set_postfix(
            {name: f"{figures[name]:.4f}" for name in ("diffusion", "word offset") if name in figures}
        )

    def close(self) -> None:
        """Flush and close everything."""
        self._file.close()
        self._bar.close()
        if self._board is not None:
            self._board.close()


def _step_of(line: str) -> float:
    """Of a line of the log; infinite if a crash has damaged it, so that it goes."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
