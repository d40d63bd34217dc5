"""A directory of mkshing's for the tiny base model, and what his implementation makes of it."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from mkshing import (
    CONFIG,
    SCALE,
    architecture,
    encode,
    encoder_state,
    make_tower,
    offset_state,
    picture,
    tuned_config,
    used_weights,
    write,
)
from tiny import CONTEXT, TinyText, TinyUNet
from torch import Tensor

from commands.convert.__main__ import main
from e4t_core.files.domain_file import load_domain
from e4t_core.methods.e4t.domain import Domain

TOKENS = 9  # 4 x 4 patches: [CLS] and every second one


class Directory:
    """A directory for the tiny base model, with all that is in it."""

    def __init__(self, folder: Path, tuned: bool = False, **config: object) -> None:
        self.unet, self.architecture = TinyUNet(), architecture()
        self.tower = make_tower(self.architecture)
        self.encoder = encoder_state(self.tower, TOKENS, self.unet.feature_width, CONTEXT)
        self.offsets = offset_state(self.unet.attention_projections())
        self.weights = self.unet.parameters()
        if tuned:
            draw = torch.Generator().manual_seed(8)
            self.weights = {k: v + 0.05 * torch.randn(v.shape, generator=draw) for k, v in self.weights.items()}
            write(folder, tuned_config() | config, encoder=self.encoder, unet=self.weights | self.offsets)
        else:
            write(folder, CONFIG | config, encoder=self.encoder, weight_offsets=self.offsets)
        self.folder = folder

    def domain(self, path: Path, *arguments: str) -> Domain:
        """Converted by the command, read from its file."""
        backbone = ("--backbone", "inside", "--architecture", self.architecture)
        assert main([str(self.folder), "-o", str(path), *backbone, *arguments]) == 0
        return load_domain(path)

    def word_and_noise(self, z: Tensor, t: Tensor, word: Tensor) -> tuple[Tensor, Tensor]:
        """e_c ``(B, D)`` and the noise prediction of "a photo of *s", by the naive implementation."""
        used, text = used_weights(self.weights, self.offsets), TinyText()
        network = copy.deepcopy(self.unet.network)
        network.load_state_dict(used)
        outputs = network.encode(z, t, text.empty().expand(len(z), -1, -1))
        features = torch.cat([output.mean(dim=(2, 3)) for output in outputs], dim=1)
        words = (word.double() + SCALE * encode(self.encoder, self.tower, picture(), features)).float()
        return words, network(z, t, text.encode(["a photo of {}"] * len(z), words))
