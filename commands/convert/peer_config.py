"""The peer's ``config.json``: the fields that decide its results, with its own defaults for what is missing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .peer_tensors import PeerFileError

DEFAULTS: dict[str, str | float | int | bool] = {
    "pretrained_model_name_or_path": "CompVis/stable-diffusion-v1-4",
    "clip_model_name_or_path": "ViT-H-14::laion2b_s32b_b79k",
    "placeholder_token": "*s",
    "domain_class_token": "face",
    "domain_embed_scale": 0.1,
    "prompt_template": "a photo of {placeholder_token}",
    "resolution": 512,
    "unfreeze_clip_vision": False,
}
# Kept for people to read, where they are there.
LARGEST = 1e9  # of any number in it; JSON may hold larger ones than a float can
RECORDED = ("max_train_steps", "learning_rate", "train_batch_size", "reg_lambda", "train_image_dataset")


@dataclass(frozen=True)
class PeerConfig:
    """What a directory says of itself.

    Attributes:
        tuned: a photo was tuned into it, so it holds a concept.
        base: the base model's name.
        architecture, pretrained: the image backbone's in open_clip.
        placeholder: the word that stands for the concept ("*s").
        word: the domain word.
        scale: s in ``e_c = e_d + s·E``.
        template: "normal", "face", "art", or one prompt with "{placeholder_token}".
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


def read_config(path: Path) -> PeerConfig:
    """Read ``config.json``. Of a tuned directory the ``pretrained_args`` count, as they do in the peer's sampling.

    Raises:
        PeerFileError: it is missing, no JSON object, or a field has a value that cannot be used.
    """
    if not path.is_file():
        raise PeerFileError(
            f"File {path.name} was not found in {path.parent}: put it there, or an empty one, {{}}, for the defaults."
        )
    try:
        outer = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise PeerFileError(
            f"File {path} could not be read as JSON ({error}): correct it, or copy it again."
        ) from error
    inner = outer.get("pretrained_args") if isinstance(outer, dict) else None
    if not isinstance(outer, dict) or not isinstance(inner, dict | None):
        raise PeerFileError(
            f"File {path} must be a JSON object, its pretrained_args too: correct it, or copy it again."
        )
    notes: list[str] = []
    values = {name: _value(path, name, inner or outer, notes) for name in DEFAULTS}
    trained_later = inner is not None and outer.get("unfreeze_clip_vision") is True
    if (
        inner is not None
        and outer.get("domain_embed_scale", values["domain_embed_scale"]) != values["domain_embed_scale"]
    ):
        notes.append(
            f"It was tuned with domain_embed_scale {outer['domain_embed_scale']!r}, but its own sampling takes"
            f" {values['domain_embed_scale']!r} from pretrained_args; so is done here."
        )
    architecture, pretrained = _backbone(str(values["clip_model_name_or_path"]), notes)
    return PeerConfig(
        tuned=inner is not None,
        base=str(values["pretrained_model_name_or_path"]),
        architecture=architecture,
        pretrained=pretrained,
        placeholder=str(values["placeholder_token"]),
        word=str(values["domain_class_token"]),
        scale=float(values["domain_embed_scale"]),
        template=str(values["prompt_template"]),
        resolution=int(values["resolution"]),
        tower_trained=bool(values["unfreeze_clip_vision"]) or trained_later,
        training={name: outer[name] for name in RECORDED if isinstance(outer.get(name), str | int | float)},
        notes=tuple(notes),
    )


def _value(path: Path, name: str, config: dict[str, Any], notes: list[str]) -> Any:
    default, value = DEFAULTS[name], config.get(name)
    if value is None:
        notes.append(f"{path.name} has no {name}: its default {default!r} is taken.")
        return default
    if isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, str):
        fits, wanted = isinstance(value, str) and bool(value.strip()), "a text"
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < LARGEST
        whole = isinstance(default, int)
        fits = number and (isinstance(value, int) or not whole)
        wanted = "a whole number above 0" if whole else "a number above 0"
    if not fits:
        raise PeerFileError(f"Field {name} = {value!r} in {path} must be {wanted}: correct it, or leave it out.")
    return value


def _backbone(name: str, notes: list[str]) -> tuple[str, str]:
    architecture, separator, pretrained = name.partition("::")
    if separator:
        return architecture, pretrained
    # Its early configs name a model that the encoder in these files never read.
    standard = str(DEFAULTS["clip_model_name_or_path"])
    notes.append(f"clip_model_name_or_path {name!r} is not of the form arch::version: {standard!r} is taken.")
    architecture, _, pretrained = standard.partition("::")
    return architecture, pretrained
