"""What is known about a domain besides its weights, and whether it fits a base model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...canonical_names import ATTENTION_PROJECTION
from ...files.description import check_fields, check_free, choice, number, part, read_json, switch, table, text
from ...files.file_errors import shown
from ...noise_schedule import PREDICTIONS
from ...templates import TEMPLATE_LIMIT, TEMPLATES_LIMIT, check_templates
from .settings import TuningSettings
from .weight_offsets import FORMS, NETWORK

BACKBONE_KINDS = ("open_clip", "comfy")
# What is read from the backbone, and with it which encoder network reads on (see ``BackboneInfo.reading``).
CLS_LAYERS, PATCH_TOKENS = "cls_layers", "patch_tokens"
READINGS = (CLS_LAYERS, PATCH_TOKENS)
BASE_FAMILIES = ("sd1", "sd2")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# The largest that are read: some times what published models have.
WIDTH, FEATURES, SIDE, BLOCKS, TOKENS, PROJECTIONS = 16_384, 1_000_000, 4096, 256, 4097, 1000


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
            the normalized [CLS] and every second patch token, for :class:`~.patch_token_encoder.PatchTokenEncoder`;
            pictures are resized as that variant was trained.
        tokens: how many vectors "patch_tokens" reads (ViT-H/14: 129); 0 for "cls_layers".

    Raises:
        ValueError: a value is out of range.
    """

    kind: str = choice(BACKBONE_KINDS)
    architecture: str = text(10_000, least=1)
    layers: tuple[int, ...] = number(1, BLOCKS, count=(1, BLOCKS))
    width: int = number(1, WIDTH)
    image_size: int = number(1, SIDE)
    pretrained: str = text(200, default="")
    mean: tuple[float, float, float] = number(-100, 100, default=CLIP_MEAN, count=(3, 3))
    std: tuple[float, float, float] = number(0, 100, above=0, default=CLIP_STD, count=(3, 3))
    weights_inside: bool = switch(False)
    sha256: str = text(64, default="")
    reading: str = choice(READINGS, CLS_LAYERS)
    tokens: int = number(0, TOKENS, default=0)

    @property
    def vectors(self) -> int:
        """L, the number of vectors that a photo becomes."""
        return self.tokens if self.reading == PATCH_TOKENS else len(self.layers)

    def __post_init__(self) -> None:
        check_fields(self, "Backbone")
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"Backbone layers {shown(self.layers)} must be block numbers from 1 on, rising.")
        if self.reading == PATCH_TOKENS and (self.tokens < 1 or len(self.layers) != 1):
            raise ValueError(
                f"Backbone reading {PATCH_TOKENS!r} needs one layer and at least 1 token, but layers are"
                f" {shown(self.layers)} and tokens = {self.tokens!r}."
            )
        if self.reading == CLS_LAYERS and self.tokens != 0:
            raise ValueError(f"Backbone tokens = {self.tokens!r} must be 0 for reading {CLS_LAYERS!r}.")
        if self.architecture.lstrip().startswith("{"):
            _check_architecture(self.architecture)


def _check_architecture(described: str) -> None:
    """Check a network's description before it is built: its sizes are bounded as those of a domain are."""
    try:
        data = read_json(described)
    except ValueError as error:
        raise ValueError(f"Backbone architecture {shown(described)} cannot be read ({error}).") from error
    check_free("Backbone architecture", data)
    vision = data.get("vision_cfg")
    for place, name, most in (
        (data, "embed_dim", WIDTH),
        (vision, "layers", BLOCKS),
        (vision, "width", WIDTH),
        (vision, "head_width", WIDTH),
        (vision, "patch_size", SIDE),
        (vision, "image_size", SIDE),
        (vision, "mlp_ratio", 64),
    ):
        value = place.get(name, 1) if isinstance(place, dict) else 1
        whole = isinstance(value, int) or (name == "mlp_ratio" and isinstance(value, float))
        if not whole or isinstance(value, bool) or not 0 < value <= most:
            raise ValueError(f"Backbone architecture's {name} = {shown(value)} must be above 0 and at most {most}.")


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
        templates: prompts of tuning, each with "{}" once where the word stands.
        preset: settings of tuning that suit this domain.
        image_size: side of the square photo in pixels that is learned from.
        crop_margin: room around a mask's box, as a share of the box's longer side.
        v_size: length of the offsets' learned constant.
        offset_form: "network" (the paper's), "direct" or "hypernetwork", see ``offset_forms``.
        training: how it was trained (data, rates …), for people to read.
        license: of its weights and data.
        step: training steps it has seen.
        base_name: of the base model it was trained on ("CompVis/stable-diffusion-v1-4"); empty if unknown.
        trained_with_masks: its loss counted on the subject only, by exact masks. ``find_subject`` leans on that: a domain
            that was rewarded for the background, too, tells less well where its subject ends.
        fit_threshold: the least gain (``photo_fit``) that is usual for photos of this domain; none: not measured, so that no
            photo is called unusual.

    Raises:
        ValueError: a value is out of range.
    """

    name: str = text(100, least=1)
    word: str = text(60, least=1, pattern=r"\S+", hint="one word without spaces")
    base_family: str = choice(BASE_FAMILIES)
    prediction: str = choice(PREDICTIONS)
    context_width: int = number(1, WIDTH)
    feature_width: int = number(1, FEATURES)
    projections: Mapping[str, tuple[int, int]] = table(PROJECTIONS)
    backbone: BackboneInfo = part(BackboneInfo)  # noqa: RUF009 - it makes a field
    scale: float = number(0, 1000, above=0)
    templates: tuple[str, ...] = text(TEMPLATE_LIMIT, least=2, count=(1, TEMPLATES_LIMIT))
    preset: TuningSettings = part(TuningSettings)  # noqa: RUF009 - it makes a field
    image_size: int = number(32, SIDE)
    crop_margin: float = number(0, 10, default=0.25)
    v_size: int = number(1, WIDTH, default=1)
    training: Mapping[str, Any] = field(default_factory=dict)
    license: str = text(2000, lines=True, default="")
    step: int = number(0, 10**12, default=0)
    offset_form: str = choice(FORMS, NETWORK)
    base_name: str = text(300, default="")
    trained_with_masks: bool = switch(False)
    fit_threshold: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, "Domain")
        check_templates(self.templates)
        fit = self.fit_threshold
        if fit is not None and not (type(fit) in (int, float) and math.isfinite(fit) and fit <= 1):
            raise ValueError(f"Domain fit_threshold = {shown(fit)} must be a finite number of at most 1.")
        if not isinstance(self.training, Mapping):
            raise ValueError(f"Domain training = {shown(self.training)} must be a table.")
        check_free("Domain training", self.training)
        _check_projections(self.projections)


def _check_projections(projections: Mapping[str, tuple[int, int]]) -> None:
    for name, shape in projections.items():
        if not isinstance(name, str) or not re.fullmatch(ATTENTION_PROJECTION, name):
            raise ValueError(f"Domain projection {shown(name)} must have the name of an attention projection's weight.")
        fits = isinstance(shape, tuple) and len(shape) == 2 and all(type(side) is int for side in shape)
        if not fits or not all(1 <= side <= WIDTH for side in shape):
            raise ValueError(f"Domain projection {name} = {shown(shape)} must be two widths from 1 to {WIDTH}.")


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


def base_note(info: DomainInfo, wired: str = "") -> str:
    """A note on the base model that a domain was trained on, or "" where there is nothing to say.

    A domain fits every base of its family, but it was trained on one, and predicts best there. Which one is wired cannot be
    known from its weights.

    Args:
        info: the domain's.
        wired: what is known of the wired base: a name or a file name ("v1-5-pruned-emaonly.safetensors"); may be empty.
    """
    if not info.base_name or info.base_name == wired:
        return ""
    trained, found = base_version(info.base_name), base_version(wired)
    if trained and trained == found:
        return ""
    name = f"Stable Diffusion {trained} ({info.base_name})" if trained else info.base_name
    if trained and found:
        return (
            f"Domain {info.name!r} was trained on {name}, and {wired} is called {found}: the person may come out less"
            " alike."
        )
    return f"Domain {info.name!r} was trained on {name}: with another base model the person may come out less alike."


def base_version(name: str) -> str:
    """The version of Stable Diffusion that a base model's name or file name says ("1.4"), or "" if it says none."""
    match = re.search(r"(?<![\d.])(?:(1)[-_.]([1-5])|(2)[-_.]([01]))(?!\d)", re.split(r"[/\\]", name)[-1])
    return "" if match is None else f"{match[1] or match[3]}.{match[2] or match[4]}"
