"""From mkshing's files to our domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from e4t_core.files.file_errors import FileError, shown, shown_name
from e4t_core.methods.e4t.clip_backbone import build_vision_tower
from e4t_core.methods.e4t.concept_encoder import OffsetEncoder
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.domain_info import PATCH_TOKENS, BackboneInfo, DomainInfo
from e4t_core.methods.e4t.settings import PRESETS, for_new_domain
from e4t_core.methods.e4t.weight_offsets import Offsets
from e4t_core.templates import NEUTRAL, STYLE, templates_of

from .mkshing_config import MkshingConfig
from .mkshing_directory import DIRECTORY, MkshingDirectory, context_width
from .mkshing_tensors import FILE

Module = TypeVar("Module", bound=nn.Module)
BACKBONES = ("auto", "stock", "inside")
SD2_WIDTH = 1024
# The one architecture whose shapes are known where encoder.pt brings no backbone: (blocks, image size, width, tokens).
VIT_H = ("ViT-H-14", (32, 224, 1280, 129))
PLACEHOLDER = "{placeholder_token}"
SETS = {"normal": NEUTRAL, "face": NEUTRAL, "art": STYLE}
"""mkshing's names for sets of templates -> ours."""


@dataclass(frozen=True)
class Options:
    """What a person may decide; an empty text leaves it to the directory.

    Attributes:
        name: the domain's name; else the directory's.
        word: the domain word.
        templates: prompts with "{}" where the word stands, or the name of a set, "neutral" or "style".
        preset: of tuning, one of ``presets.PRESETS``.
        prediction: "epsilon" or "v", the base's.
        architecture: the backbone's, an open_clip name or JSON.
        backbone: "stock", "inside", or "auto" (inside only if it was trained).
        half: store everything in float16.
        license: of weights and data.
    """

    name: str = ""
    word: str = ""
    templates: tuple[str, ...] = ()
    preset: str = ""
    prediction: str = ""
    architecture: str = ""
    backbone: str = "auto"
    half: bool = False
    license: str = ""


def to_domain(source: MkshingDirectory, options: Options = Options()) -> tuple[Domain, tuple[str, ...]]:
    """The domain, and sentences on what was assumed.

    Raises:
        MkshingFileError: the backbone should be inside, but the directory has none, or its shapes are unknown; or a
            value of directory or options is out of a domain's range.
        BackboneError: open_clip is missing or cannot build the backbone that should be inside.
        ValueError: an option has a value that does not exist.
    """
    config, notes = source.config, list(source.config.notes)
    context = context_width(source.offsets)
    family = "sd2" if context == SD2_WIDTH else "sd1"
    word = options.word or config.word
    templates = templates_of(options.templates) if options.templates else _templates(config, notes)
    preset = options.preset or (word if word in ("face", "cat", "art") else "art" if templates == STYLE else "face")
    if preset not in PRESETS:
        raise ValueError(f"Preset {preset!r} is unknown: it must be one of {', '.join(sorted(PRESETS))}.")
    prediction = options.prediction or ("v" if family == "sd2" and not config.base.endswith("-base") else "epsilon")
    if family == "sd2" and not options.prediction:
        notes.append(
            f"The base {config.base!r} is taken to predict {prediction!r}, by its name; else give --prediction."
        )
    notes.append(
        f"It was trained on the base model {config.base!r}: wire that one for the best likeness; the domain file names it."
    )
    notes.append(
        "It was pre-trained without masks, so find_subject tells less well where the subject of a photo ends: wire a mask"
        " where the background must not be learned; the domain file says so too."
    )
    try:
        backbone = _backbone(source, options, notes)
        info = DomainInfo(
            name=options.name or source.path.resolve().name,
            word=word,
            base_family=family,
            prediction=prediction,
            context_width=context,
            feature_width=source.encoder.network.feature_width,
            projections=source.offsets.shapes,
            backbone=backbone,
            scale=config.scale,
            templates=templates,
            preset=for_new_domain(preset),
            image_size=config.resolution,
            v_size=source.offsets.v_size,
            training={
                "converted_from": "mkshing/e4t-diffusion",
                "tuned_to_one_photo": config.tuned,
                "placeholder_token": config.placeholder,
                "prompt_template": config.template,
                **config.training,
            },
            license=options.license,
            step=_steps(source),
            base_name=config.base,
            trained_with_masks=False,
        )
    except FileError:
        raise
    except ValueError as error:
        raise DIRECTORY.fault(
            source.path,
            f"cannot become a domain: {str(error).rstrip('.')}",
            "correct config.json, or give another value (see --help)",
        ) from error
    encoder: OffsetEncoder = source.encoder.network
    offsets: Offsets = source.offsets
    state = None
    if options.half:
        encoder, offsets = _rounded(encoder, encoder.blank()), _rounded(offsets, offsets.blank())
    if backbone.weights_inside and source.encoder.tower is not None:
        dtype = torch.float16 if options.half else torch.float32
        state = {key: value.to(dtype) for key, value in source.encoder.tower.state.items()}
    return Domain(encoder, offsets, info, state), tuple(notes)


def _rounded(network: nn.Module, blank: Module) -> Module:
    """A network's numbers as a file of half precision gives them back, so that a concept is of the domain in that file."""
    state = {key: value.half().float() for key, value in network.state_dict().items()}
    blank.load_state_dict(state, assign=True)
    return blank.eval().requires_grad_(False)


def _templates(config: MkshingConfig, notes: list[str]) -> tuple[str, ...]:
    """The prompts it was tuned with: its own sentence as it is, its sets as ours of the same kind."""
    sentence = config.template.replace(PLACEHOLDER, "{}", 1)
    try:
        return templates_of([sentence]) if sentence != config.template else SETS[config.template]
    except (ValueError, KeyError):
        name = "style" if config.word == "art" else "neutral"
        notes.append(f"Its prompt template {config.template!r} has no {PLACEHOLDER}: our set {name!r} is taken.")
        return templates_of([name])


def _steps(source: MkshingDirectory) -> int:
    steps = source.config.training.get("max_train_steps", 0)
    return steps if isinstance(steps, int) and steps > 0 else 0


def _backbone(source: MkshingDirectory, options: Options, notes: list[str]) -> BackboneInfo:
    config, encoder = source.config, source.encoder
    architecture = options.architecture or config.architecture
    if options.backbone not in BACKBONES:
        raise ValueError(f"Backbone {options.backbone!r} must be one of {', '.join(BACKBONES)}.")
    file = source.path / "encoder.pt"
    inside = options.backbone == "inside" or (options.backbone == "auto" and config.tower_trained)
    if inside and encoder.tower is None:
        if options.backbone == "inside":
            raise FILE.fault(
                file,
                "holds no image backbone (clip_vision.*) that could be put inside",
                "convert with --backbone stock",
            )
        notes.append(
            "Its image backbone was trained, but is not in encoder.pt: like its own loader, the stock one is read."
        )
        inside = False
    if config.tower_trained and encoder.tower is not None:
        notes.append(
            "Its image backbone was trained along (unfreeze_clip_vision), so no stock file has its weights: they"
            f" {'go into the domain file' if inside else 'are left out all the same, and results will differ'}."
        )
    blocks, image_size, width, tokens = _shapes(source, architecture)
    info = BackboneInfo(
        kind="open_clip",
        architecture=architecture,
        layers=(blocks,),
        width=width,
        image_size=image_size,
        pretrained="" if inside else config.pretrained,
        weights_inside=inside,
        reading=PATCH_TOKENS,
        tokens=tokens,
    )
    if inside:
        _check_architecture(source, info)
    return info


def _shapes(source: MkshingDirectory, architecture: str) -> tuple[int, int, int, int]:
    """Blocks, image size, width and tokens of the backbone."""
    tower, network = source.encoder.tower, source.encoder.network
    if tower is not None:
        return tower.blocks, tower.image_size, tower.width, tower.tokens
    name, shapes = VIT_H
    if architecture != name or (network.clip_width, network.layers) != shapes[2:]:
        raise FILE.fault(
            source.path / "encoder.pt",
            f"holds no image backbone, and {network.layers} tokens of width {network.clip_width} are not those of {name}",
            "name a directory whose encoder.pt has clip_vision.*",
        )
    return shapes


def _check_architecture(source: MkshingDirectory, info: BackboneInfo) -> None:
    """That the named architecture has the shapes of the weights that go inside."""
    assert source.encoder.tower is not None
    with torch.device("meta"):
        built = {
            key: tuple(value.shape) for key, value in build_vision_tower(info).state_dict().items() if key != "proj"
        }
    held = {key: tuple(value.shape) for key, value in source.encoder.tower.state.items()}
    wrong = sorted(key for key in built.keys() | held.keys() if built.get(key) != held.get(key))
    if wrong:
        raise FILE.fault(
            source.path / "encoder.pt",
            f"holds an image backbone that is not {shown(info.architecture, 30)} ({shown_name(wrong[0])} is"
            f" {held.get(wrong[0], 'missing')} in place of {built.get(wrong[0], 'missing')})",
            "name its architecture with --architecture",
        )
