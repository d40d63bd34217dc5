"""mkshing's ``config.json``: the fields that decide its results, with its own defaults for what is missing."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e4t_core.files.description import JSON_LIMIT, check_fields, check_free, like, read_json, switch, text
from e4t_core.files.file_errors import shown
from e4t_core.files.whole_file import check_is_file
from e4t_core.methods.e4t.domain_info import DomainInfo

from .mkshing_tensors import FILE

CORRECT = "correct it, or copy it again"
# Kept for people to read, where they are there.
RECORDED = ("max_train_steps", "learning_rate", "train_batch_size", "reg_lambda", "train_image_dataset")
# Fields that the tuning has of its own.
OF_TUNING = ("prompt_template", "domain_embed_scale")
STANDARD_BACKBONE = "ViT-H-14::laion2b_s32b_b79k"


@dataclass(frozen=True)
class _Fields:
    """The fields by mkshing's names, with its defaults; the ranges are those of what a domain makes of them."""

    pretrained_model_name_or_path: str = like(DomainInfo, "base_name", "CompVis/stable-diffusion-v1-4")
    clip_model_name_or_path: str = text(200, least=1, default=STANDARD_BACKBONE)
    placeholder_token: str = text(60, least=1, pattern=r".*\S.*", hint="more than spaces", default="*s")
    # Whether it is one word is asked of the word that is taken, which may be another.
    domain_class_token: str = text(60, least=1, default="face")
    domain_embed_scale: float = like(DomainInfo, "scale", 0.1)
    prompt_template: str = text(200, least=1, default="a photo of {placeholder_token}")
    resolution: int = like(DomainInfo, "image_size", 512)
    unfreeze_clip_vision: bool = switch(False)

    def __post_init__(self) -> None:
        check_fields(self, "the field")


@dataclass(frozen=True)
class MkshingConfig:
    """What a directory says of itself.

    Attributes:
        tuned: a photo was tuned into it, so it holds a concept.
        base: the base model's name.
        architecture, pretrained: the image backbone's in open_clip.
        placeholder: the word that stands for the concept ("*s").
        word: the domain word.
        scale: s in ``e_c = e_d + s·E``.
        template: "normal", "face", "art", or one prompt with "{placeholder_token}"; of a tuned directory the one it was
            tuned with.
        resolution: side of its training pictures in pixels.
        tower_trained: the backbone was trained along, so that no stock file has its weights.
        training: recorded values of the training, for people to read.
        notes: sentences on what was missing or is odd.
    """

    tuned: bool
    base: str
    architecture: str
    pretrained: str
    placeholder: str
    word: str
    scale: float
    template: str
    resolution: int
    tower_trained: bool
    training: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_config(path: Path) -> MkshingConfig:
    """Read ``config.json``, in any Unicode encoding. Of a tuned directory the ``pretrained_args`` count, as they do in
    mkshing's own sampling; only the prompt template is that of the tuning.

    Raises:
        MkshingFileError: it is missing, no JSON object, or a field has a value that cannot be used.
    """
    outer, inner = _read(path)
    notes: list[str] = []
    fields = _fields(path, outer if inner is None else inner, notes)
    trained_later = inner is not None and outer.get("unfreeze_clip_vision") is True
    template = fields.prompt_template
    if inner is not None:
        later = {name: outer[name] for name in OF_TUNING if outer.get(name) is not None}
        tuning = _fields(path, {**inner, **later}, [])
        template = tuning.prompt_template
        if tuning.domain_embed_scale != fields.domain_embed_scale:
            notes.append(
                f"It was tuned with domain_embed_scale {tuning.domain_embed_scale!r}, but its own sampling takes"
                f" {fields.domain_embed_scale!r} from pretrained_args; so is done here."
            )
    training = {name: outer[name] for name in RECORDED if isinstance(outer.get(name), str | int | float)}
    try:
        check_free("training", training)
        architecture, pretrained = _backbone(fields.clip_model_name_or_path, notes)
    except ValueError as error:
        raise FILE.fault(path, f"cannot be used ({str(error).rstrip('.')})", CORRECT) from error
    return MkshingConfig(
        tuned=inner is not None,
        base=fields.pretrained_model_name_or_path,
        architecture=architecture,
        pretrained=pretrained,
        placeholder=fields.placeholder_token,
        word=fields.domain_class_token,
        scale=float(fields.domain_embed_scale),
        template=template,
        resolution=fields.resolution,
        tower_trained=fields.unfreeze_clip_vision or trained_later,
        training=training,
        notes=tuple(notes),
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The object, and its ``pretrained_args``, if it has any."""
    if check_is_file(path, FILE) > 4 * JSON_LIMIT:
        raise FILE.fault(path, "is too large for a config.json", CORRECT)
    try:
        data = path.read_bytes()
        outer = read_json(data.decode(json.detect_encoding(data)))
    except (ValueError, OSError) as error:
        raise FILE.fault(path, f"could not be read as JSON ({error})", CORRECT) from error
    inner = outer.get("pretrained_args")
    if not isinstance(inner, dict | None):
        raise FILE.fault(path, f"has pretrained_args = {shown(inner)}, which must be a JSON object", CORRECT)
    return outer, inner or None


def _fields(path: Path, config: dict[str, Any], notes: list[str]) -> _Fields:
    given = {item.name: config[item.name] for item in dataclasses.fields(_Fields) if config.get(item.name) is not None}
    for item in dataclasses.fields(_Fields):
        if item.name not in given:
            notes.append(f"{path.name} has no {item.name}: its default {item.default!r} is taken.")
    try:
        return _Fields(**given)
    except ValueError as error:
        raise FILE.fault(path, f"cannot be used: {str(error).rstrip('.')}", "correct it, or leave it out") from error


def _backbone(name: str, notes: list[str]) -> tuple[str, str]:
    if "::" not in name:
        # Its early configs name a model that the encoder in these files never read.
        notes.append(
            f"clip_model_name_or_path {name!r} is not of the form arch::version: {STANDARD_BACKBONE!r} is taken."
        )
        name = STANDARD_BACKBONE
    architecture, _, pretrained = name.partition("::")
    if not architecture.strip() or not pretrained.strip():
        raise ValueError(
            f"the field clip_model_name_or_path = {name!r} must name architecture and version, arch::version"
        )
    return architecture, pretrained
