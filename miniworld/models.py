"""The mini world's trained models, loaded from its shipped weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .autoencoder import Autoencoder
from .judge import ARCHITECTURES, Judge
from .text_encoder import TextEncoder
from .unet import UNetModel
from .weights import FOLDER, load_weights


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


def _filled(model: nn.Module, name: str) -> nn.Module:
    model.load_state_dict(read(name)[0])
    return model.eval().requires_grad_(False)


def load_vae() -> Autoencoder:
    return _filled(Autoencoder(), "vae")  # type: ignore[return-value]


def load_text() -> TextEncoder:
    return _filled(TextEncoder(), "text")  # type: ignore[return-value]


def load_unet() -> UNetModel:
    return _filled(UNetModel().to(memory_format=torch.channels_last), "base")  # type: ignore[return-value]


def load_judge(name: str) -> Judge:
    """One of the two judges, "judge-a" or "judge-b"."""
    return _filled(Judge(ARCHITECTURES[name]), name)  # type: ignore[return-value]


def load_judges() -> dict[str, Judge]:
    """Both judges, by name."""
    return {name: load_judge(name) for name in ARCHITECTURES}
