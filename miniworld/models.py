"""The mini world's trained models, loaded from its shipped weights."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from .autoencoder import Autoencoder
from .judge import ARCHITECTURES, Judge
from .text_encoder import TextEncoder
from .unet import UNetModel
from .weights import FOLDER, load_weights

Model = TypeVar("Model", bound=nn.Module)


class MissingWeightsError(FileNotFoundError):
    """Weights that have not been trained yet; the message names the command that trains them."""


def weights_path(name: str) -> Path:
    return FOLDER / f"{name}.safetensors"


def read(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A shipped state dict and its metadata.

    Raises:
        MissingWeightsError: there is no such file.
    """
    path = weights_path(name)
    if not path.is_file():
        raise MissingWeightsError(f"{path.name} is missing in {path.parent}: make it by 'python3 dev.py train {name}'.")
    return load_weights(path)


def channels_last(model: Model) -> Model:
    """The model with its weights laid out for convolutions that read a pixel's channels together, which CPUs are faster at."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's stubs lack it


def _filled(model: Model, name: str) -> Model:
    model.load_state_dict(read(name)[0])
    return model.eval().requires_grad_(False)


def load_vae() -> Autoencoder:
    return _filled(Autoencoder(), "vae")


def load_text() -> TextEncoder:
    return _filled(TextEncoder(), "text")


def load_unet() -> UNetModel:
    return _filled(channels_last(UNetModel()), "base")


def load_judge(name: str) -> Judge:
    """One of the two judges, "judge-a" or "judge-b"."""
    return _filled(Judge(ARCHITECTURES[name]), name)


def load_judges() -> dict[str, Judge]:
    """Both judges, by name."""
    return {name: load_judge(name) for name in ARCHITECTURES}
