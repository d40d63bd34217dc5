"""The concept of a tuned directory, with all that it needs besides: a base model, the photo, and an image backbone."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from commands.pretrain.data.pictures import decode, to_float
from e4t_core.concept import Concept
from e4t_core.files.checked_file import check_keys, check_shapes
from e4t_core.files.file_errors import FileKind
from e4t_core.files.whole_file import check_is_file
from e4t_core.methods.e4t.clip_backbone import ClipBackbone, read_backbone_weights
from e4t_core.methods.e4t.domain import Domain
from e4t_core.photos import Photos
from e4t_core.run import StepReport

from .mkshing_directory import MkshingDirectory
from .mkshing_tensors import FILE, MkshingFileError
from .to_concept import check_tuned, to_concept

if TYPE_CHECKING:
    from commands.base.clip_text import ClipTextEncoder
    from commands.base.diffusers_base import DiffusersBase

logger = logging.getLogger(__name__)

PHOTO = FileKind(
    "Photo", "name another picture with --photo", MkshingFileError, "put it there, or name it with --photo"
)
OWN_PHOTO = "domain.png"
"""What mkshing's tuning saves of the photo, cropped as it was learned."""
PREFIX = "text_model."
ROWS = "embeddings.token_embedding.weight"


@dataclass(frozen=True)
class Given:
    """What a tuned directory lacks of its concept.

    Attributes:
        base: the base model that was tuned, a diffusers folder or one ``.safetensors`` checkpoint.
        photo: none: the directory's ``domain.png``.
        trigger: empty: the directory's placeholder.
        backbone: file of the image backbone, for directories whose ``encoder.pt`` has none.
    """

    base: Path
    photo: Path | None = None
    trigger: str = ""
    backbone: Path | None = None


def tuned_concept(source: MkshingDirectory, domain: Domain, given: Given) -> Concept:
    """The concept of a tuned directory, see :func:`~.to_concept.to_concept`.

    Raises:
        FileError: the directory is not a tuned one, or photo, base or backbone are missing, damaged, or of another model.
        ValueError: they do not belong to the domain; one sentence says what differs.
    """
    try:
        # A domain file alone needs none of these.
        from commands.base.diffusers_base import load_base
        from commands.progress import Progress
    except ImportError as error:
        raise MkshingFileError(
            f"A concept file cannot be made without the package {error.name}: run this with the Python of the clone's .venv,"
            " which 'python3 dev.py train --help' makes."
        ) from error

    check_tuned(source)
    pixels = read_photo(given.photo or source.path / OWN_PHOTO, domain.info.image_size)
    weights = backbone_weights(source, domain, given.backbone)
    logger.info("Reading %s.", given.base)
    base = load_base(given.base)
    text = tuned_text(base, source)
    features = ClipBackbone(domain.info.backbone, weights).cls_features(pixels)
    photos = Photos(base.encode(pixels), features)
    with Progress(desc="The word, averaged over noise levels", unit="pass") as bar:

        def told(report: StepReport) -> None:
            bar.total = report.total
            bar.update(report.done - bar.n)

        concept = to_concept(source, domain, base.unet, text, photos, trigger=given.trigger, on_step=told)
    return dataclasses.replace(concept, base_name=base.name)


def read_photo(path: Path, size: int) -> Tensor:
    """A picture's centered square ``(1, 3, size, size)`` in [0, 1].

    Raises:
        MkshingFileError: it is missing, or no picture.
    """
    check_is_file(path, PHOTO)
    try:
        return to_float(decode(path.read_bytes(), size).image)[None]
    except (OSError, ValueError) as error:
        raise PHOTO.fault(path, f"could not be read ({error})") from error


def backbone_weights(source: MkshingDirectory, domain: Domain, file: Path | None) -> Mapping[str, Tensor]:
    """The image backbone's weights: those of a file, if one is given, else the directory's own.

    Raises:
        FileError: there are none, or the file cannot be used.
    """
    tower = source.encoder.tower
    if file is not None:
        # Its last projection is not read; mkshing's files have none.
        return {
            name: value for name, value in read_backbone_weights(file, domain.info.backbone).items() if name != "proj"
        }
    if tower is None:
        raise FILE.fault(
            source.path / "encoder.pt",
            "holds no image backbone (clip_vision.*), which has to read the photo",
            f"name a file of {domain.info.backbone.architecture} with --backbone-file",
        )
    return tower.state


def tuned_text(base: DiffusersBase, source: MkshingDirectory) -> ClipTextEncoder:
    """The base's text encoder, with the directory's tuned weights where it has some; the placeholder's row is left out.

    Raises:
        MkshingFileError: they are of another text encoder.
    """
    if source.text_encoder is None:
        return base.text
    path, network = source.path / "text_encoder.pt", base.text.network
    # transformers before 5.6 wraps it once more.
    inner = getattr(network, "text_model", network)
    expected = {name: tuple(value.shape) for name, value in inner.state_dict().items() if "position_ids" not in name}
    found = {name.removeprefix(PREFIX): value for name, value in source.text_encoder.items()}
    found[ROWS] = found[ROWS][: expected[ROWS][0]]
    check_keys(path, FILE, found, expected)
    check_shapes(path, FILE, found, expected)
    inner.load_state_dict({name: value.to(torch.float32) for name, value in found.items()}, strict=False, assign=True)
    return base.text
