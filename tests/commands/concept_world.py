"""A small Stable Diffusion as a diffusers folder, a directory of mkshing's that was tuned on it, and concepts learned on it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mkshing import architecture, encoder_state, make_tower, offset_state, tuned_config, write
from PIL import Image
from small_base import make_base
from torch import Tensor

from commands.base.diffusers_base import DiffusersBase, load_base
from commands.convert.mkshing_directory import read_directory
from commands.convert.to_domain import Options, to_domain
from e4t_core.concept import Concept
from e4t_core.files.concept_tensors import parts_of
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.method import E4T
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.photos import Photos
from e4t_core.run import BaseModel
from e4t_core.training import train
from e4t_core.weight_changes import Scaled, full_differences, shared_factors

TOKENS = 9  # 4 x 4 patches: [CLS] and every second one
NUMBERS = ("embedding", "start", "weights", "predictor", "recipe")
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

    def domain(self, license: str = "") -> Domain:
        """What the directory becomes."""
        options = Options(architecture=self.architecture, license=license)
        return to_domain(read_directory(self.folder / "tuned"), options)[0]

    def learned(self, trigger: str, seed: int = 0) -> Concept:
        """A concept that is learned in two steps from noise."""
        draw = torch.Generator().manual_seed(seed)
        photos = Photos(torch.randn(1, 4, 8, 8, generator=draw), torch.randn(1, TOKENS, 8, generator=draw))
        base = BaseModel(self.base.unet, self.base.text)
        return train(E4T(self.domain()), base, photos, QUICK, seed, trigger)


def tensors_of(concept: Concept) -> dict[str, Tensor]:
    """All numbers of a concept by name."""
    tensors = {"embedding": concept.embedding}
    tensors |= {} if concept.start is None else {"start": concept.start}
    for name, stored in full_differences(concept.weights).items():
        tensors |= {f"{name}.values": stored.values, f"{name}.scale": torch.tensor(stored.scale)}
    for name, (p, q) in shared_factors(concept.weights).items():
        tensors |= {f"{name}.p": p, f"{name}.q": q}
    for number, (part, share) in enumerate(parts_of(concept.predictor)):
        held = {**part.encoder.state_dict(), "clip": part.clip_features, "word": part.domain_word_embedding}
        held |= {"scale": torch.tensor(float(part.scale)), "share": torch.tensor(share)}
        tensors |= {f"predictor.{number}.{name}": value for name, value in held.items()}
    return tensors


def same_concept(one: Concept, other: Concept) -> bool:
    """Whether two concepts are alike bit for bit, what learns them again left out."""
    plain = [{f.name: getattr(c, f.name) for f in dataclasses.fields(c) if f.name not in NUMBERS} for c in (one, other)]
    a, b = tensors_of(one), tensors_of(other)
    owners = [{change.owner for change in c.weights if isinstance(change, Scaled)} for c in (one, other)]
    return (
        plain[0] == plain[1]
        and owners[0] == owners[1]
        and a.keys() == b.keys()
        and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
    )
