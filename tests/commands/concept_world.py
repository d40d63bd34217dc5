"""A small Stable Diffusion as a diffusers folder, a directory of mkshing's that was tuned on it, and concepts learned on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from mkshing import architecture, encoder_state, make_tower, offset_state, tuned_config, write
from PIL import Image
from small_base import make_base

from commands.base.diffusers_base import DiffusersBase, load_base
from commands.convert.mkshing_directory import read_directory
from commands.convert.to_domain import Options, to_domain
from e4t_core.concept import Concept
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.method import E4T
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.photos import Photos
from e4t_core.run import BaseModel
from e4t_core.training import train

TOKENS = 9  # 4 x 4 patches: [CLS] and every second one
QUICK = TuningSettings(steps=2, batch=2, learning_rate=1e-4, use_mask=False)


@dataclass
class ConceptWorld:
    """Folders ``base`` and ``tuned``, as objects too.

    Attributes:
        folder: that they lie in.
        base: the base model.
        architecture: of the image backbone in ``tuned/encoder.pt``.
    """

    folder: Path
    base: DiffusersBase = field(init=False)
    architecture: str = field(init=False)
    unet: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.base = load_base(make_base(self.folder / "base", downsamplings=3))
        self.architecture, unet = architecture(), self.base.unet
        self.tower = make_tower(self.architecture)
        self.encoder = encoder_state(self.tower, TOKENS, unet.feature_width, unet.context_width)
        self.offsets = offset_state(unet.attention_projections())
        draw = torch.Generator().manual_seed(8)
        self.unet = {k: v + 0.01 * torch.randn(v.shape, generator=draw) for k, v in unet.parameters().items()}
        write(self.folder / "tuned", tuned_config(), encoder=self.encoder, unet=self.unet | self.offsets)
        self.photo(self.folder / "tuned" / "domain.png")

    @staticmethod
    def photo(path: Path, seed: int = 0, size: tuple[int, int] = (64, 64)) -> Path:
        """A picture of colored noise."""
        draw = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=draw, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
        return path

    def domain(self) -> Domain:
        """What the directory becomes."""
        return to_domain(read_directory(self.folder / "tuned"), Options(architecture=self.architecture))[0]

    def learned(self, trigger: str, seed: int = 0) -> Concept:
        """A concept that is learned in two steps from noise."""
        draw = torch.Generator().manual_seed(seed)
        photos = Photos(torch.randn(1, 4, 8, 8, generator=draw), torch.randn(1, TOKENS, 8, generator=draw))
        base = BaseModel(self.base.unet, self.base.text)
        return train(E4T(self.domain()), base, photos, QUICK, seed, trigger)
