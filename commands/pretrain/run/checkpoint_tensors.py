"""The tensors of a training run as its checkpoint holds them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .checkpoints import Checkpoint, CheckpointError
from .weight_average import WeightAverage


def state_tensors(
    parameters: Mapping[str, nn.Parameter], average: WeightAverage, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The tensors of a checkpoint: "trained/NAME", "average/NAME" and "optimizer/NAME/KEY"; not copied."""
    tensors: dict[str, Tensor] = {f"trained/{name}": value for name, value in parameters.items()}
    tensors |= {f"average/{name}": value for name, value in average.state.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{name}/{key}"] = value
    return tensors


@torch.no_grad()
def restore_tensors(
    checkpoint: Checkpoint,
    parameters: Mapping[str, nn.Parameter],
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write a checkpoint's tensors into the weights, their average and the optimizer, in place.

    Raises:
        CheckpointError: a tensor is missing or has another shape; nothing is written then.
    """
    tensors = checkpoint.tensors
    expected = {f"trained/{name}" for name in parameters} | {f"average/{n}" for n in average.state}
    missing = sorted(expected - tensors.keys())
    if missing:
        raise CheckpointError(
            f"The checkpoint of step {checkpoint.step} lacks {missing[0]}: delete it, or choose another output.folder."
        )
    for name, parameter in parameters.items():
        shape = tuple(tensors[f"trained/{name}"].shape)
        if shape != tuple(parameter.shape):
            raise CheckpointError(
                f"In the checkpoint of step {checkpoint.step} {name} has the shape {shape}, and these settings want"
                f" {tuple(parameter.shape)}: set domain and training.offset_form back, or choose another output.folder."
            )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[f"trained/{name}"])
        prefix = f"optimizer/{name}/"
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        optimizer.state[parameter] = {
            # AdamW counts its steps on the CPU.
            key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
            for key, value in state.items()
        }
    for name, value in average.state.items():
        value.copy_(tensors[f"average/{name}"])
