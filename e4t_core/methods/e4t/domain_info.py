"""What is known about a domain besides its weights, and whether it fits a base model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...noise_schedule import PREDICTIONS
from ...presets import TuningSettings, templates_of
from .weight_offsets import FORMS, NETWORK

BACKBONE_KINDS = ("open_clip", "comfy")
# What is read from the backbone, and with it which encoder network reads on (see ``BackboneInfo.reading``).
CLS_LAYERS, PATCH_TOKENS = "cls_layers", "patch_tokens"
READINGS = (CLS_LAYERS, PATCH_TOKENS)
BASE_FAMILIES = ("sd1", "sd2")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class DomainMismatchError(ValueError):
    """A domain that was made for another base model; the message names what differs."""


@dataclass(frozen=True)
class BackboneInfo:
    """Which image backbone a domain reads, and how.

    Attributes:
        kind: "open_clip" (built by open_clip_torch), or "comfy" (a stock CLIP_VISION model serves as well).
        architecture: an open_clip name ("ViT-H-14"), or a JSON object {"embed_dim": …, "vision_cfg": {…}}.
        pretrained: open_clip's tag of the weights ("laion2b_s32b_b79k"); empty where the domain file holds them.
        layers: blocks that are read, counted from 1, rising (ViT-H: 2, 4, … 32).
        width: width of a [CLS] vector (ViT-H: 1280).
        image_size: side of its square input in pixels.
        mean, std: per channel, of pixels in [0, 1].
        weights_inside: the domain file holds the weights, because they were trained for it or are tiny.
        sha256: hash of the weights file, where that is outside; may be empty.
        reading: the variant of the encoder. "cls_layers" (the paper's): the [CLS] vector after each of ``layers``, for
            :class:`~.concept_encoder.ConceptEncoder`. "patch_tokens" (converted domains): of the one block in ``layers``
            the normalised [CLS] and every second patch token, for :class:`~.patch_token_encoder.PatchTokenEncoder`;
            pictures are resized as that variant was trained.
        tokens: how many vectors "patch_tokens" reads (ViT-H/14: 129); 0 for "cls_layers".

    Raises:
        ValueError: a value is out of range.
    """

    kind: str
    architecture: str
    layers: tuple[int, ...]
    width: int
    image_size: int
    pretrained: str = ""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    weights_inside: bool = False
    sha256: str = ""
    reading: str = CLS_LAYERS
    tokens: int = 0

    @property
    def vectors(self) -> int:
        """L, the number of vectors that a photo becomes."""
        return self.tokens if self.reading == PATCH_TOKENS else len(self.layers)

    def __post_init__(self) -> None:
        if self.reading not in READINGS:
            raise ValueError(f"Backbone reading {self.reading!r} must be one of {', '.join(READINGS)}.")
        if self.reading == PATCH_TOKENS and (self.tokens < 1 or len(self.layers) != 1):
            raise ValueError(
                f"Backbone reading {PATCH_TOKENS!r} needs one layer and at least 1 token, but layers are"
                f" {self.layers!r} and tokens = {self.tokens!r}."
            )
        if self.reading == CLS_LAYERS and self.tokens != 0:
            raise ValueError(f"Backbone tokens = {self.tokens!r} must be 0 for reading {CLS_LAYERS!r}.")
        if self.kind not in BACKBONE_KINDS:
            raise ValueError(f"Backbone kind {self.kind!r} must be one of {', '.join(BACKBONE_KINDS)}.")
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 1:
            raise ValueError(f"Backbone layers {self.layers!r} must be block numbers from 1 on, rising.")
        for name in ("width", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"Backbone {name} = {getattr(self, name)!r} must be at least 1.")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ValueError(f"Backbone mean {self.mean!r} and std {self.std!r} must be three numbers, std above 0.")


@dataclass(frozen=True)
class DomainInfo:
    """What is known about a domain besides its weights.

    Attributes:
        name: its short name ("faces").
        word: the domain word, one token of the base's text encoder ("face").
        base_family: "sd1" or "sd2".
        prediction: "epsilon" or "v", the base's.
        context_width: D, width of word embeddings and contexts (SD 1.x: 768).
        feature_width: width of the UNet features (SD 1.x: 10880).
        projections: canonical names of the offset matrices -> (M out, N in).
        backbone: the image backbone.
        scale: s in ``e_c = e_d + s·E``.
        templates: name of the prompt template set.
        preset: settings of tuning that suit this domain.
        image_size: side of the square photo in pixels that is learned from.
        crop_margin: room around a mask's box, as a share of the box's longer side.
        v_size: length of the offsets' learned constant.
        offset_form: "network" (the paper's), "direct" or "hypernetwork", see ``offset_forms``.
        training: how it was trained (data, rates …), for people to read.
        licence: of its weights and data.
        step: training steps it has seen.
        trained_with_masks: its loss counted on the subject only. ``find_subject`` leans on that.
        fit_threshold: the least gain (``photo_fit``) that is usual for photos of this domain; none: not measured, so that no
            photo is called unusual.

    Raises:
        ValueError: a value is out of range.
    """

    name: str
    word: str
    base_family: str
    prediction: str
    context_width: int
    feature_width: int
    projections: Mapping[str, tuple[int, int]]
    backbone: BackboneInfo
    scale: float
    templates: str
    preset: TuningSettings
    image_size: int
    crop_margin: float = 0.25
    v_size: int = 1
    training: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    step: int = 0
    offset_form: str = NETWORK
    trained_with_masks: bool = False
    fit_threshold: float | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.word:
            raise ValueError(f"A domain needs a name and a word: name {self.name!r}, word {self.word!r}.")
        if self.base_family not in BASE_FAMILIES:
            raise ValueError(f"Base family {self.base_family!r} must be one of {', '.join(BASE_FAMILIES)}.")
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"Prediction type {self.prediction!r} must be one of {', '.join(PREDICTIONS)}.")
        for name in ("context_width", "feature_width", "image_size", "v_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"Domain {name} = {getattr(self, name)!r} must be at least 1.")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"Domain scale s = {self.scale!r} must be a finite number above 0.")
        if not (math.isfinite(self.crop_margin) and self.crop_margin >= 0):
            raise ValueError(f"Domain crop_margin = {self.crop_margin!r} must be a finite number of at least 0.")
        if self.step < 0:
            raise ValueError(f"Domain step = {self.step!r} must be at least 0.")
        if self.offset_form not in FORMS:
            raise ValueError(f"Domain offset_form = {self.offset_form!r} must be one of {', '.join(FORMS)}.")
        templates_of(self.templates)
        fit = self.fit_threshold
        if fit is not None and not (type(fit) in (int, float) and math.isfinite(fit) and fit <= 1):
            raise ValueError(f"Domain fit_threshold = {fit!r} must be a finite number of at most 1.")


def check_base(
    info: DomainInfo,
    context_width: int,
    prediction: str,
    feature_width: int,
    projections: Mapping[str, tuple[int, int]],
) -> None:
    """Check that a domain fits a base model.

    Args:
        info: the domain's.
        context_width, prediction, feature_width, projections: the base's, as its ``UNet`` and ``TextEncoder`` say.

    Raises:
        DomainMismatchError: it was made for another base; one sentence says what differs and what to do.
    """
    advice = f"load a base model of the family {info.base_family!r} it was made for, or another domain"
    if context_width != info.context_width:
        raise DomainMismatchError(
            f"Domain {info.name!r} has words of width {info.context_width}, but this base model's text encoder has"
            f" width {context_width}: {advice}."
        )
    if prediction != info.prediction:
        raise DomainMismatchError(
            f"Domain {info.name!r} was trained on a base with {info.prediction!r} prediction, but this base model"
            f" predicts {prediction!r}: {advice}."
        )
    missing = sorted(info.projections.keys() - projections.keys())
    extra = sorted(projections.keys() - info.projections.keys())
    if missing or extra:
        example = (missing or extra)[0]
        raise DomainMismatchError(
            f"Domain {info.name!r} has offsets for {len(info.projections)} attention matrices, but this base model has"
            f" {len(projections)} ({example} is {'missing there' if missing else 'not among them'}): {advice}."
        )
    for name, shape in info.projections.items():
        if tuple(projections[name]) != tuple(shape):
            raise DomainMismatchError(
                f"Domain {info.name!r} has an offset of shape {shape[0]}×{shape[1]} for {name}, but this base model's"
                f" matrix is {projections[name][0]}×{projections[name][1]}: {advice}."
            )
    if feature_width != info.feature_width:
        raise DomainMismatchError(
            f"Domain {info.name!r} reads UNet features of width {info.feature_width}, but this base model gives"
            f" {feature_width}: {advice}."
        )
