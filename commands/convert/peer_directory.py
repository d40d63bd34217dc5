"""A whole directory of the peer's, read and checked."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from e4t_core.methods.e4t.weight_offsets import WeightOffsets

from .peer_config import PeerConfig, read_config
from .peer_encoder import PeerEncoder, read_encoder
from .peer_offsets import STOCK_MATRICES, check_unet, is_offset, read_offsets
from .peer_tensors import ADVICE, PeerFileError, check_finite, read_tensors

logger = logging.getLogger(__name__)

# What the encoder reads of a whole SD 1.x or 2.x UNet.
STOCK_FEATURES = 10880


@dataclass(frozen=True, eq=False)
class PeerDirectory:
    """A directory of the peer's.

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
    config: PeerConfig
    encoder: PeerEncoder
    offsets: WeightOffsets
    unet: dict[str, Tensor]
    text_encoder: dict[str, Tensor] | None


def read_directory(path: Path) -> PeerDirectory:
    """Read and check a pre-trained or tuned directory.

    Raises:
        PeerFileError: a file is missing, holds more than tensors, or keys, shapes or counts are off.
    """
    if not path.is_dir():
        raise PeerFileError(
            f"Directory {path} was not found: name one with config.json, encoder.pt and weight_offsets.pt."
        )
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
    if config.tuned and (path / "text_encoder.pt").is_file():
        text_encoder = _read_text_encoder(path / "text_encoder.pt")
    return PeerDirectory(path, config, encoder, offsets, unet, text_encoder)


def context_width(offsets: WeightOffsets) -> int:
    """D, the width of a context, from the cross-attentions' offsets."""
    return next(shape[1] for name, shape in offsets.shapes.items() if name.endswith("attn2.to_k.weight"))


def _offsets_file(path: Path, config: PeerConfig) -> Path:
    """``unet.pt`` of a tuned directory, which early ones lack; ``weight_offsets.pt`` of a pre-trained one."""
    order = ("unet.pt", "weight_offsets.pt") if config.tuned else ("weight_offsets.pt", "unet.pt")
    for name in order:
        if (path / name).is_file():
            return path / name
    raise PeerFileError(
        f"Directory {path} has no weight offsets, neither {order[0]} nor {order[1]}: put the file there, or name another"
        " directory."
    )


def _check_belongs_together(path: Path, source: Path, encoder: PeerEncoder, offsets: WeightOffsets) -> None:
    width, words = context_width(offsets), encoder.network.word_width
    if words != width:
        raise PeerFileError(
            f"The encoder in {path / 'encoder.pt'} gives words of width {words}, but the offsets in {source.name} are for"
            f" a text encoder of width {width}: take both files from one checkpoint."
        )
    if encoder.network.feature_width == STOCK_FEATURES and len(offsets.names) != STOCK_MATRICES:
        raise PeerFileError(
            f"File {source} holds offsets of {len(offsets.names)} attention matrices, {9 * len(offsets.names)} tensors,"
            f" but the UNet that the encoder reads has {STOCK_MATRICES}, {9 * STOCK_MATRICES} tensors: {ADVICE}."
        )


def _read_text_encoder(path: Path) -> dict[str, Tensor]:
    tensors = read_tensors(path)
    # An index table, which is no weight.
    tensors.pop("text_model.embeddings.position_ids", None)
    rows = tensors.get("text_model.embeddings.token_embedding.weight")
    if rows is None or rows.ndim != 2 or not all(key.startswith("text_model.") for key in tensors):
        raise PeerFileError(f"File {path} is no text encoder of Stable Diffusion: {ADVICE}.")
    check_finite(path, tensors)
    return tensors
