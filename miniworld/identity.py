"""The mini world's judges as identity networks of ``commands.evaluate``: ``--identity python:miniworld.identity:judge_a``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from commands.evaluate.networks.network import Embedded, digest

from .attributes import DOMAINS
from .models import load_judge, weights_path
from .renderer import SIZE

FACE = list(DOMAINS).index("face")


class JudgeNetwork:
    """Args:
    name: of the judge.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.fingerprint = digest(weights_path(name))
        self._judge = load_judge(name).eval()

    def embed(self, pictures: Sequence[Image.Image]) -> Embedded:
        """Who it is; a face is found where the judge takes the subject for one and not for a cat."""
        sized = [picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC) for picture in pictures]
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in sized])).permute(0, 3, 1, 2) / 255
        said = self._judge.read(pixels)
        return Embedded(said.identity.numpy(), (said.answer("domain") == FACE).numpy())


def judge_a() -> JudgeNetwork:
    """The convolutional judge."""
    return JudgeNetwork("judge-a")


def judge_b() -> JudgeNetwork:
    """The attentive judge."""
    return JudgeNetwork("judge-b")
