"""The processes of a run: how accelerate is set up, and that all of them start from the same point."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from .errors import TrainingError


def open_accelerator(precision: str) -> Accelerator:
    """This process's place among all of them, and its device.

    Raises:
        TrainingError: the precision needs a GPU and there is none.
    """
    cpu = not torch.cuda.is_available()
    if cpu and precision == "fp16":
        raise TrainingError("training.precision = 'fp16' needs a GPU, and none was found: set it to 'bf16' or 'fp32'.")
    return Accelerator(
        cpu=cpu,
        mixed_precision={"fp32": "no"}.get(precision, precision),
        # Accumulation is done here, by training.micro_batch: its launcher's setting would divide the gradients again.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )


def check_alike(states: Sequence[str]) -> None:
    """That all processes start from the same point: each reads the checkpoint from its own disk.

    Raises:
        TrainingError: they do not.
    """
    for number, state in enumerate(states):
        if state != states[0]:
            raise TrainingError(
                f"Process {number} would start from another point than process 0 ({state}; {states[0]}): put output.folder,"
                " the data and both networks where all nodes find the same."
            )
