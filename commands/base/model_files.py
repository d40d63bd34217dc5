"""Base model and image backbone as a config names them: are the files there, are they what they should be, how large."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from e4t_core.canonical_names import canonical_names
from e4t_core.methods.e4t.clip_backbone import build_vision_tower, missing_backbone
from e4t_core.methods.e4t.domain_info import BackboneInfo

from .counts import PROMPT_LENGTH, UNetCounts, count_transformer, count_unet, count_vae_encoder, parameters
from .factories import from_factory
from .header import HeaderError, Shapes, read_header, without_prefix
from .networks import info_of
from .settings import BackboneSettings, BaseSettings

FAMILY_WIDTHS = {"sd1": 768, "sd2": 1024}
LATENT_STEP = 8  # pixels per latent pixel


@dataclass(frozen=True)
class BaseCounts:
    """Attributes:
    unet: see :class:`~.counts.UNetCounts`.
    text_parameters, vae_parameters: of text encoder and autoencoder.
    text_forward: operations to encode one prompt.
    vae_encode: operations to encode one picture; 0 if the autoencoder is of an unknown kind.
    """

    unet: UNetCounts
    text_parameters: int
    vae_parameters: int
    text_forward: int
    vae_encode: int


@dataclass(frozen=True)
class BackboneCounts:
    """Attributes:
    parameters: of the vision tower.
    layers, width: what the encoder reads of it.
    forward: operations for one picture.
    """

    parameters: int
    layers: int
    width: int
    forward: int


def check_base(settings: BaseSettings, image: int) -> BaseCounts:
    """Check a base model by the headers of its files.

    Args:
        settings: of the config.
        image: side of the pictures in pixels.

    Raises:
        HeaderError: a part is missing or is not what the config says.
        DataError: the factory of kind "python" does not exist.
    """
    if settings.kind == "python":
        base = from_factory(settings.factory)()
        unet: Shapes = {name: tuple(weight.shape) for name, weight in base.unet.parameters().items()}
        text, vae = _module(base.text), _module(base.vae)
    elif settings.kind == "checkpoint":
        unet, text, vae = _single_file(Path(settings.path))
    else:
        unet, text, vae = _folder(Path(settings.path), settings.prediction)
    place = settings.path or settings.factory
    try:
        counts = count_unet(unet, (image // LATENT_STEP, image // LATENT_STEP))
    except ValueError as error:
        raise HeaderError(f"The base model {place} is no Stable Diffusion 1.x or 2.x ({error}): choose one.") from error
    if counts.in_channels != 4:
        raise HeaderError(
            f"The base model {place} reads {counts.in_channels} channels, not 4: choose one that is not for inpainting."
        )
    if counts.context_width != FAMILY_WIDTHS[settings.family]:
        raise HeaderError(
            f"The base model {place} reads prompts of width {counts.context_width}, but base.family ="
            f" {settings.family!r} has {FAMILY_WIDTHS[settings.family]}: correct base.family, or choose another model."
        )
    if settings.kind == "checkpoint":
        _check_prediction(Path(settings.path), settings.prediction)
    blocks = {name: shape for name, shape in text.items() if re.search(r"(layers|resblocks)\.\d+\.", name)}
    return BaseCounts(
        unet=counts,
        text_parameters=parameters(text),
        vae_parameters=parameters(vae),
        text_forward=count_transformer(blocks, PROMPT_LENGTH, counts.context_width),
        vae_encode=count_vae_encoder(vae, image),
    )


def _module(part: Any) -> Shapes:
    """The shapes of a wrapped network's parameters, whichever attribute it hangs on."""
    network = getattr(part, "network", None) or getattr(part, "model", None)
    return {} if network is None else {name: tuple(weight.shape) for name, weight in network.named_parameters()}


def _single_file(path: Path) -> tuple[Shapes, Shapes, Shapes]:
    shapes = read_header(path, "base model").shapes
    parts = {}
    for name, prefix in (
        ("UNet", ("model.diffusion_model.",)),
        ("text encoder", ("cond_stage_model.", "conditioner.embedders.0.")),
        ("autoencoder", ("first_stage_model.",)),
    ):
        parts[name] = next((found for p in prefix if (found := without_prefix(shapes, p))), {})
        if not parts[name]:
            raise HeaderError(f"The base model {path} holds no {name} ({prefix[0]}*): choose a whole checkpoint.")
    try:
        names = canonical_names(parts["UNet"])
    except ValueError as error:
        raise HeaderError(f"The base model {path} cannot be used: {error}") from error
    unet = {names[name]: shape for name, shape in parts["UNet"].items()}
    return unet, parts["text encoder"], parts["autoencoder"]


def _check_prediction(path: Path, asked: str) -> None:
    from .single_file import BaseModelError, SingleFile

    try:
        found = SingleFile(path).prediction()
    except BaseModelError as error:
        raise HeaderError(str(error)) from error
    if asked not in ("", found):
        # ComfyUI tells the two apart in the same way, and would refuse a domain of the other kind on this base.
        raise HeaderError(
            f"The base model {path} predicts {found!r} by its metadata or weights, but base.prediction is {asked!r}:"
            " correct it, or leave it empty."
        )


def _folder(path: Path, prediction: str) -> tuple[Shapes, Shapes, Shapes]:
    if not (path / "model_index.json").is_file():
        raise HeaderError(
            f"The base model {path} is no diffusers folder (it has no model_index.json): correct the path."
        )
    parts = []
    for name, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
        ("vae", "diffusion_pytorch_model"),
    ):
        found = sorted((path / name).glob(f"{stem}*.safetensors"), key=lambda file: (len(file.name), file.name))
        first = found[0] if found else path / name / f"{stem}.safetensors"
        shapes: dict[str, tuple[int, ...]] = {}
        for file in _files_of(first):
            shapes |= read_header(file, "base model's part").shapes
        parts.append(shapes)
    scheduler = path / "scheduler" / "scheduler_config.json"
    try:
        says = json.loads(scheduler.read_text(encoding="utf-8")).get("prediction_type", "epsilon")
    except (OSError, ValueError, AttributeError) as error:
        raise HeaderError(f"The base model's {scheduler} could not be read ({error}): download it again.") from error
    if prediction and {"epsilon": "epsilon", "v_prediction": "v"}.get(says) != prediction:
        raise HeaderError(
            f"The base model {path} predicts {says!r} by its scheduler_config.json, but base.prediction is"
            f" {prediction!r}: correct it."
        )
    return parts[0], parts[1], parts[2]


def _files_of(file: Path) -> list[Path]:
    """The files of a part of which this one is the first: itself, or all of "…-00001-of-00003.safetensors"."""
    match = re.fullmatch(r"(.*-)(\d+)(-of-(\d+)\.safetensors)", file.name)
    if match is None:
        return [file]
    width = len(match[2])
    return [file.with_name(f"{match[1]}{number:0{width}}{match[3]}") for number in range(1, int(match[4]) + 1)]


def check_backbone(settings: BackboneSettings) -> BackboneCounts:
    """Check an image backbone by its file's header.

    Raises:
        HeaderError: the file is missing or is not what the config says.
        BackboneError: open_clip does not know its architecture.
        DataError: the factory of kind "python" does not exist.
    """
    if settings.kind == "python":
        made = from_factory(settings.factory)()
        shapes: Shapes = {name: tuple(weight.shape) for name, weight in made.tower.state_dict().items()}
        layers, width, image = made.info.layers, made.info.width, made.info.image_size
    else:
        if not Path(settings.path).is_file():
            raise HeaderError(missing_backbone(Path(settings.path), info_of(settings)))
        shapes = read_header(Path(settings.path), "image backbone").shapes
        layers, width, image = settings.layers, settings.width, settings.image_size
        for prefix in ("visual.", "vision_model."):
            shapes = without_prefix(shapes, prefix) or shapes
    place = settings.path or settings.factory
    patches = shapes.get("conv1.weight") or shapes.get("embeddings.patch_embedding.weight")
    blocks = {
        name: s for name, s in shapes.items() if re.match(r"(transformer\.resblocks|encoder\.layers)\.\d+\.", name)
    }
    if patches is None or not blocks:
        raise HeaderError(f"The image backbone {place} holds no vision transformer: choose a CLIP ViT.")
    depth = 1 + max(int(name.split(".")[2]) for name in blocks)
    if patches[0] != width:
        raise HeaderError(
            f"The image backbone {place} has width {patches[0]}, but backbone.width = {width}: correct it."
        )
    if depth < layers[-1]:
        raise HeaderError(
            f"The image backbone {place} has {depth} blocks, but backbone.layers asks for block {layers[-1]}: correct it."
        )
    if settings.kind != "python":
        positions = shapes.get("positional_embedding") or shapes.get("embeddings.position_embedding.weight") or (0,)
        _check_architecture(info_of(settings), place, (depth, width, patches[-1], positions[0]))
    tokens = (image // patches[-1]) ** 2 + 1
    return BackboneCounts(parameters(shapes), len(layers), width, count_transformer(blocks, tokens, width))


def _check_architecture(info: BackboneInfo, place: str, found: tuple[int, int, int, int]) -> None:
    """That a file's blocks, width, patches and positions are those of the architecture, and positions those of the size.

    Raises:
        BackboneError: open_clip does not know the architecture, or it is not what the config says.
        HeaderError: the file or backbone.image_size does not fit it.
    """
    with torch.device("meta"):
        tower: Any = build_vision_tower(info)
    patch, positions = tower.conv1.kernel_size[0], tower.positional_embedding.shape[0]
    built = (len(tower.transformer.resblocks), info.width, patch, positions)
    for what, in_file, wanted in zip(("blocks", "width", "patches of side", "positions"), found, built, strict=True):
        if in_file != wanted:
            raise HeaderError(
                f"The image backbone {place} is not of backbone.architecture = {info.architecture!r} ({what}: {in_file}, of the"
                f" architecture: {wanted}): correct it, or choose another file."
            )
    if (info.image_size // patch) ** 2 + 1 != positions:
        raise HeaderError(
            f"backbone.image_size = {info.image_size} gives {(info.image_size // patch) ** 2} patches, but the image backbone"
            f" {place} knows {positions - 1}: set it to {patch * round((positions - 1) ** 0.5)}."
        )
