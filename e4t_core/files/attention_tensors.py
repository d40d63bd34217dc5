"""What a concept says of single cross-attention layers, as tensors of the concept file.

``layer.<name>``: the word ``(V, D)`` that a layer reads; or what its values are made of ``(D,)``, where there is a gated edit as well:
``edit.encoding``, ``edit.direction``, ``edit.key`` ``(D,)`` and ``edit.gate``, its bias and temperature.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..attention_changes import AttentionChange, GatedEdit, LayerWords
from .checked_file import TensorInfo, check_dtypes, check_keys, check_shapes
from .file_errors import FileKind, shown_name

LAYER, EDIT, GATE = "layer.", "edit.", "edit.gate"
VECTORS = ("edit.encoding", "edit.direction", "edit.key")
LAYERS = 256
"""Cross-attention layers that a network has at most."""
_NAME = re.compile(
    r"layer\.(down_blocks\.\d{1,3}|mid_block|up_blocks\.\d{1,3})\.attentions\.\d{1,3}\.transformer_blocks\.\d{1,3}\.attn2"
)


def attention_tensors(change: AttentionChange | None) -> dict[str, Tensor]:
    """The tensors of a file."""
    if change is None:
        return {}
    rows, found = change.tensors()[0], {}
    if isinstance(change, GatedEdit):
        rows = change.values
        found = dict(zip(VECTORS, (change.encoding, change.direction, change.key), strict=True))
        found[GATE] = torch.tensor([change.bias, change.temperature], dtype=torch.float64)
    found |= {f"{LAYER}{name}": row for name, row in zip(change.layers, rows, strict=True)}
    return {name: one.detach().cpu().contiguous().clone() for name, one in found.items()}


def attention_keys(found: Mapping[str, object]) -> set[str]:
    """Those of a file's tensors that are about layers."""
    return {name for name in found if name.startswith((LAYER, EDIT))}


def check_attention(path: Path, kind: FileKind, found: Mapping[str, TensorInfo], shape: tuple[int, ...]) -> None:
    """Check them, as far as it can be done before a number is read.

    Args:
        shape: of the concept's word; a layer's is alike.

    Raises:
        FileError: of the kind; a name or shape is wrong.
    """
    edit = {name: (2,) if name == GATE else shape[1:] for name in (*VECTORS, GATE)}
    if any(name.startswith(EDIT) for name in found):
        check_keys(path, kind, {name: part for name, part in found.items() if name.startswith(EDIT)}, edit)
        check_dtypes(path, kind, {GATE: found[GATE]}, (torch.float64,))
    else:
        edit = {}
    wrong = next((name for name in sorted(found) if name not in edit and not _NAME.fullmatch(name)), None)
    if wrong is not None:
        raise kind.fault(path, f"holds {shown_name(wrong)}, which is no cross-attention layer's word")
    if len(found) > LAYERS:
        raise kind.fault(path, f"holds words of {len(found)} layers; {LAYERS} are read at most")
    rows = {name: shape[1:] if edit else shape for name in found if name not in edit}
    if edit and not rows:
        raise kind.fault(path, "edits no cross-attention layer")
    check_shapes(path, kind, found, edit | rows)
    check_dtypes(path, kind, {name: part for name, part in found.items() if name != GATE}, (torch.float32,))


def attention_of(path: Path, kind: FileKind, tensors: Mapping[str, Tensor]) -> AttentionChange | None:
    """What a file says of layers, from finite tensors that :func:`check_attention` has let pass.

    Raises:
        FileError: of the kind; a gate that no token could pass.
    """
    names = sorted(name for name in tensors if name.startswith(LAYER))
    if not names:
        return None
    layers, rows = tuple(name.removeprefix(LAYER) for name in names), torch.stack([tensors[name] for name in names])
    if GATE not in tensors:
        return LayerWords(layers, rows)
    encoding, direction, key = (tensors[name] for name in VECTORS)
    bias, temperature = (float(number) for number in tensors[GATE])
    if not (temperature > 0 and (encoding * direction).sum() > 0):
        raise kind.fault(path, "holds an edit whose gate cannot open")
    return GatedEdit(layers, encoding, direction, key, rows, bias, temperature)
