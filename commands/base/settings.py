"""Which base model and image backbone a trainer takes: the sections ``[base]`` and ``[backbone]`` of a config."""

from __future__ import annotations

from dataclasses import dataclass

from e4t_core.methods.e4t.domain_info import BASE_FAMILIES
from e4t_core.noise_schedule import PREDICTIONS
from e4t_core.settings import check_settings, setting

BASE_KINDS = ("diffusers", "checkpoint", "python")
BACKBONE_KINDS = ("open_clip", "python")


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one sentence that names the setting and its range."""


def check_section(name: str, settings: object) -> None:
    """Check every field of a config's section against its range.

    Raises:
        ConfigError: the first that is out of it.
    """
    try:
        check_settings(settings, name)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_place(section: str, kind: str, path: str, factory: str) -> None:
    """Check that a section says where its data or model comes from.

    Raises:
        ConfigError: it does not.
    """
    if kind == "python":
        module, colon, attribute = factory.partition(":")
        if not (module and colon and attribute):
            raise ConfigError(f"{section}.factory = {factory!r} must be written as 'package.module:function'.")
    elif not path:
        raise ConfigError(f"{section}.path is empty: say where the {kind} data or model lies.")


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

    kind: str = setting(choices=BASE_KINDS)
    path: str = ""
    factory: str = ""
    family: str = setting("sd1", choices=BASE_FAMILIES)
    prediction: str = setting("", choices=("", *PREDICTIONS))

    def __post_init__(self) -> None:
        check_section("base", self)
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

    kind: str = setting(choices=BACKBONE_KINDS)
    path: str = ""
    factory: str = ""
    architecture: str = setting("ViT-H-14", filled=True)
    pretrained: str = "laion2b_s32b_b79k"
    layers: tuple[int, ...] = setting(tuple(range(2, 33, 2)), least=1)
    width: int = setting(1280, least=1)
    image_size: int = setting(224, least=1)

    def __post_init__(self) -> None:
        check_section("backbone", self)
        check_place("backbone", self.kind, self.path, self.factory)
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise ConfigError(f"backbone.layers = {list(self.layers)} must be rising numbers of blocks.")
