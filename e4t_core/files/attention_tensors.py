"""What a concept says of single cross-attention layers, as tensors of the concept file: ``layer.<name>`` for each word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..attention_changes import AttentionChange, LayerWords
from .checked_file import TensorInfo, check_shapes
from .file_errors import FileKind, shown_name

LAYER = "layer."
LAYERS = 256
"""Cross-attention layers that a network has at most."""
_NAME = re.compile(
    r"layer\.(down_blocks\.\d{1,3}|mid_block|up_blocks\.\d{1,3})\.attentions\.\d{1,3}\.transformer_blocks\.\d{1,3}\.attn2"
)


def attention_tensors(change: AttentionChange | None) -> dict[str, Tensor]:
    """The tensors of a file."""
    if change is None:
        return {}
    words = change.embeddings.detach().to("cpu", torch.float32)
    return {f"{LAYER}{name}": word.contiguous().clone() for name, word in zip(change.layers, words, strict=True)}


def attention_keys(found: Mapping[str, object]) -> set[str]:
    """Those of a file's tensors that are about layers."""
    return {name for name in found if name.startswith(LAYER)}


def check_attention(path: Path, kind: FileKind, found: Mapping[str, TensorInfo], shape: tuple[int, ...]) -> None:
    """Check them before a number is read.

    Args:
        shape: of the concept's word; a layer's is alike.

    Raises:
        FileError: of the kind; a name or shape is wrong.
    """
    wrong = next((name for name in sorted(found) if not _NAME.fullmatch(name)), None)
    if wrong is not None:
        raise kind.fault(path, f"holds {shown_name(wrong)}, which is no cross-attention layer's word")
    if len(found) > LAYERS:
        raise kind.fault(path, f"holds words of {len(found)} layers; {LAYERS} are read at most")
    check_shapes(path, kind, found, dict.fromkeys(found, shape))


def attention_of(tensors: Mapping[str, Tensor]) -> AttentionChange | None:
    """What a file says of layers, from tensors that :func:`check_attention` has let pass."""
    names = sorted(attention_keys(tensors))
    if not names:
        return None
    return LayerWords(tuple(name.removeprefix(LAYER) for name in names), torch.stack([tensors[name] for name in names]))
