"""A whole directory as mkshing/e4t-diffusion writes it, read and checked."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from e4t_core.files.file_errors import FileKind
from e4t_core.files.whole_file import check_is_file, check_is_folder
from e4t_core.methods.e4t.weight_offsets import WeightOffsets

from .mkshing_config import MkshingConfig, read_config
from .mkshing_encoder import MkshingEncoder, read_encoder
from .mkshing_offsets import STOCK_MATRICES, check_unet, is_offset, read_offsets
from .mkshing_tensors import FILE, MkshingFileError, check_numbers, read_tensors

logger = logging.getLogger(__name__)

DIRECTORY = FileKind(
    "Directory",
    "download or copy it again",
    MkshingFileError,
    "name one with config.json, encoder.pt and weight_offsets.pt",
)

# What the encoder reads of a whole SD 1.x or 2.x UNet.
STOCK_FEATURES = 10880


@dataclass(frozen=True, eq=False)
class MkshingDirectory:
    """A directory of mkshing's files.

    Attributes:
        path: where it is.
        config: what it says of itself.
        encoder: its encoder and, mostly, image backbone.
        offsets: its weight offsets; tuned ones, if it is a tuned directory.
        unet: of a tuned directory, the tuned UNet's weights W by diffusers' names, to be used as ``W * (1 + Δ)``.
            Empty where only the offsets were tuned.
        text_encoder: of a tuned directory that has one, the tuned text encoder.
    """

    path: Path
    config: MkshingConfig
    encoder: MkshingEncoder
    offsets: WeightOffsets
    unet: dict[str, Tensor]
    text_encoder: dict[str, Tensor] | None


def read_directory(path: Path) -> MkshingDirectory:
    """Read and check a pre-trained or tuned directory.

    Raises:
        MkshingFileError: a file is missing, holds more than tensors, or keys, shapes or counts are off.
    """
    check_is_folder(path, DIRECTORY)
    config = read_config(path / "config.json")
    logger.info("Reading %s.", path / "encoder.pt")
    encoder = read_encoder(path / "encoder.pt")
    source = _offsets_file(path, config)
    logger.info("Reading %s.", source)
    tensors = read_tensors(source)
    unet: dict[str, Tensor] = {}
    if source.name == "unet.pt":
        unet = {key: value for key, value in tensors.items() if not is_offset(key)}
        tensors = {key: value for key, value in tensors.items() if is_offset(key)}
    offsets = read_offsets(source, tensors)
    if unet:
        check_unet(source, unet, offsets)
    _check_belongs_together(path, source, encoder, offsets)
    text_encoder = None
    if config.tuned and (path / "text_encoder.pt").exists():
        text_encoder = _read_text_encoder(path / "text_encoder.pt")
    return MkshingDirectory(path, config, encoder, offsets, unet, text_encoder)


def context_width(offsets: WeightOffsets) -> int:
    """D, the width of a context, from the cross-attentions' offsets."""
    return next(shape[1] for name, shape in offsets.shapes.items() if name.endswith("attn2.to_k.weight"))


def _offsets_file(path: Path, config: MkshingConfig) -> Path:
    """``unet.pt`` of a tuned directory, which early ones lack; ``weight_offsets.pt`` of a pre-trained one."""
    order = ("unet.pt", "weight_offsets.pt") if config.tuned else ("weight_offsets.pt", "unet.pt")
    for name in order:
        if (path / name).exists():
            check_is_file(path / name, FILE)
            return path / name
    raise DIRECTORY.fault(
        path,
        f"has no weight offsets, neither {order[0]} nor {order[1]}",
        "put the file there, or name another directory",
    )


def _check_belongs_together(path: Path, source: Path, encoder: MkshingEncoder, offsets: WeightOffsets) -> None:
    width, words = context_width(offsets), encoder.network.word_width
    if words != width:
        raise FILE.fault(
            path / "encoder.pt",
            f"gives words of width {words}, but the offsets in {source.name} are for a text encoder of width {width}",
            "take both files from one checkpoint",
        )
    if encoder.network.feature_width == STOCK_FEATURES and len(offsets.names) != STOCK_MATRICES:
        raise FILE.fault(
            source,
            f"holds offsets of {len(offsets.names)} attention matrices, but the encoder's UNet has {STOCK_MATRICES}",
        )


def _read_text_encoder(path: Path) -> dict[str, Tensor]:
    tensors = read_tensors(path)
    # An index table, which is no weight.
    tensors.pop("text_model.embeddings.position_ids", None)
    rows = tensors.get("text_model.embeddings.token_embedding.weight")
    if rows is None or rows.ndim != 2 or not all(key.startswith("text_model.") for key in tensors):
        raise FILE.fault(path, "is no text encoder of Stable Diffusion")
    check_numbers(path, tensors)
    return tensors
