"""Which base model and image backbone a trainer takes: the sections ``[base]`` and ``[backbone]`` of a config."""

from __future__ import annotations

from dataclasses import dataclass

from e4t_core.methods.e4t.domain_info import BASE_FAMILIES
from e4t_core.noise_schedule import PREDICTIONS

from .setting_rules import ConfigError, check_place, check_ranges, choice, number, text

BASE_KINDS = ("diffusers", "checkpoint", "python")
BACKBONE_KINDS = ("open_clip", "python")


@dataclass(frozen=True)
class BaseSettings:
    """The frozen base model.

    Attributes:
        kind: "diffusers" (a folder), "checkpoint" (one .safetensors file), or "python" (what a factory returns).
        path: of the folder or file.
        factory: "package.module:function", for kind "python".
        family: "sd1" or "sd2".
        prediction: "epsilon" or "v"; empty: as the base says, or as its weights suggest.
    """

    kind: str = choice(BASE_KINDS)
    path: str = ""
    factory: str = ""
    family: str = choice(BASE_FAMILIES, "sd1")
    prediction: str = choice(("", *PREDICTIONS), "")

    def __post_init__(self) -> None:
        check_ranges("base", self)
        check_place("base", self.kind, self.path, self.factory)


@dataclass(frozen=True)
class BackboneSettings:
    """The frozen image backbone.

    Attributes:
        kind: "open_clip" (architecture by name, weights from a file), or "python" (what a factory returns).
        path: of the weights, a safetensors file of the vision tower or of the whole open_clip model.
        factory: "package.module:function", for kind "python".
        architecture, pretrained: open_clip's names of network and weights.
        layers: blocks whose [CLS] vector is read, counted from 1, rising.
        width: of a [CLS] vector.
        image_size: side of the backbone's input in pixels.
    """

    kind: str = choice(BACKBONE_KINDS)
    path: str = ""
    factory: str = ""
    architecture: str = text("ViT-H-14")
    pretrained: str = "laion2b_s32b_b79k"
    layers: tuple[int, ...] = number(tuple(range(2, 33, 2)), least=1)
    width: int = number(1280, least=1)
    image_size: int = number(224, least=1)

    def __post_init__(self) -> None:
        check_ranges("backbone", self)
        check_place("backbone", self.kind, self.path, self.factory)
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise ConfigError(f"backbone.layers = {list(self.layers)} must be rising numbers of blocks.")
