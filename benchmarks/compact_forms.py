"""Forms of a concept's changes that the compact benchmark compares: what each keeps of them, and its size at true shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from e4t_core.files.compact_body import CompactSettings, bytes_of, describe, pack, unpack
from e4t_core.low_rank import GAIN, truncated_svd
from e4t_core.methods.e4t.concept_encoder import ConceptEncoder, OffsetEncoder
from e4t_core.quantized import QuantizedRows, packed_size
from e4t_core.weight_changes import LowRank

from .compact_concepts import Tuned

Shapes = Mapping[str, tuple[int, ...]]
OTHERS = ("conv", "attn2", "proj_in", "proj_out", "time_emb")
"""Of matrices that are neither self-attention nor feed-forward."""


@dataclass(frozen=True)
class Form:
    """One way to keep a concept.

    Attributes:
        name: in the table.
        bits: of a number; 16: as it is.
        rank: of factors; 0: no factors.
        gain: of the factors, see ``quantized_factors``.
        kept: texts of which a kept matrix' name holds one; empty: all matrices.
        vectors: whether biases and norms are kept.
        static: the fixed word, without refinement and without the encoder.
        unet_rank: it was TUNED as factors of this rank; 0: as whole matrices.
        minor_rank: of self-attention and feed-forward layers; 0: as of all.
        fitted: the factors were tuned to predict what the concept predicts, as the node "Save E4T Concept" does.
        drawn: pictures are made of it; else it is compared by noise predictions alone.
        stock: as a stock LoRA in float16, which holds the domain's offset, too.
    """

    name: str
    bits: int = 16
    rank: int = 0
    gain: float = GAIN
    kept: tuple[str, ...] = ()
    vectors: bool = True
    static: bool = False
    unet_rank: int = 0
    stock: bool = False
    minor_rank: int = 0
    fitted: bool = False
    drawn: bool = True

    def settings(self) -> CompactSettings:
        """The product's settings, where this form is one of the product's."""
        return CompactSettings(rank=self.rank, minor_rank=self.minor_rank or self.rank, bits=self.bits, gain=self.gain)

    def chosen(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a difference is kept."""
        if len(shape) < 2:
            return self.vectors
        return not self.kept or any(text in name for text in self.kept)


EXACT = Form("exact")
FORMS = (
    EXACT,
    *(Form(f"every number in {bits} bits", bits=bits, drawn=False) for bits in (8, 4, 2)),
    Form("every number in 1 bit", bits=1, drawn=False),
    *(Form(f"rank {rank} in 8 bits", bits=8, rank=rank, drawn=False) for rank in (64, 32, 16, 8)),
    Form("rank 26 in 3 bits", bits=3, rank=26, drawn=False),
    Form("rank 26 and 6 in 3 bits without gain", bits=3, rank=26, minor_rank=6, gain=0.0, drawn=False),
    Form("rank 26 and 6 in 3 bits", bits=3, rank=26, minor_rank=6),
    Form("rank 26 and 6 in 3 bits fitted", bits=3, rank=26, minor_rank=6, fitted=True),
    Form("rank 28 in 3 bits without self-attention and feed-forward", bits=3, rank=28, kept=OTHERS, vectors=False),
    Form("tuned at rank 8 in 4 bits", bits=4, rank=8, gain=0.0, unet_rank=8),
    Form("fixed word and exact weights", static=True),
    Form("fixed word and a LoRA of rank 32", rank=32, vectors=False, static=True, stock=True),
)
"""In the table's order. All are derived from one tuning, except those that were tuned as factors."""


def changed(
    form: Form, tuned: Tuned, untuned: OffsetEncoder, fitted: Mapping[str, Tensor | LowRank] | None = None
) -> tuple[dict[str, Tensor], OffsetEncoder]:
    """The UNet's differences and the encoder that come back from a form.

    Args:
        fitted: of a form that is: its changes as they were tuned.
    """
    kept = {name: value for name, value in tuned.differences.items() if form.chosen(name, tuple(value.shape))}
    encoder = untuned.blank()
    encoder.load_state_dict(tuned.encoder, assign=True)
    encoder.eval().requires_grad_(False)
    if form.bits == 16:
        return (low_rank(kept, form.rank) if form.rank else kept), encoder
    difference = encoder.difference_from(untuned, tuned.clip_features)
    if form.rank:
        body = unpack(*pack(kept if fitted is None else fitted, difference, form.settings()))
        return {change.name: change.difference() for change in body.weights}, untuned.plus(body.encoder)
    values = {
        name: QuantizedRows.of(value.reshape(len(value) if value.ndim > 1 else 1, -1), form.bits)
        .values()
        .reshape(value.shape)
        for name, value in kept.items()
    }
    body = unpack(*pack({}, difference))
    return values, untuned.plus(body.encoder)


def stock_changes(form: Form, tuned: Tuned, shared: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a stock LoRA adds to the base: the domain's offset and the concept's own difference in one."""
    whole = {name: value for name, value in tuned.differences.items() if form.chosen(name, tuple(value.shape))}
    for name, stored in shared.items():
        whole[name] = whole[name] + stored.value() if name in whole else stored.value()
    return low_rank(whole, form.rank) if form.rank else whole


def low_rank(differences: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Matrices as factors in float16; vectors as they are."""

    def of(value: Tensor) -> Tensor:
        if value.ndim < 2:
            return value
        matrix = value.flatten(1)
        up, down = truncated_svd(matrix, min(rank, *matrix.shape))
        return (up.half().float() @ down.half().float()).reshape(value.shape)

    return {name: of(value) for name, value in differences.items()}


@cache
def sd15_shapes() -> dict[str, tuple[int, ...]]:
    """Stable Diffusion 1.5's UNet: canonical name -> shape."""
    from e4t_core.canonical_names import canonical_names

    from . import host

    host.import_comfyui()
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    from .full_size import SD15

    with torch.device("meta"):
        state = UNetModel(**SD15, operations=comfy.ops.disable_weight_init).state_dict()
    names = canonical_names(list(state))
    return {names[native]: tuple(value.shape) for native, value in state.items()}


def sd15_encoder() -> ConceptEncoder:
    """The paper's encoder for it, without numbers."""
    return ConceptEncoder(16, 1280, 10880, 768, device="meta")


def sd15_always() -> int:
    """Bytes that every body holds besides its differences: P and Q of the domain, CLIP features and the word, in float16."""
    offsets = sum(3 * sum(shape) for name, shape in sd15_shapes().items() if _is_projection(name))
    return 2 * (offsets + 16 * 1280 + 2 * 768)


def _is_projection(name: str) -> bool:
    return any(f".attn{n}.to_{part}." in name for n in (1, 2) for part in ("q", "k", "v"))


def sd15_bytes(form: Form) -> int:
    """Bytes of a form at Stable Diffusion 1.5's shapes, the description of factors included."""
    shapes = {name: shape for name, shape in sd15_shapes().items() if form.chosen(name, shape)}
    encoder = sd15_encoder()
    whole = sum(value.numel() for value in encoder.state_dict().values())
    if form.stock:
        return 2 * sum(form.rank * _sides(shape) if len(shape) > 1 else math.prod(shape) for shape in shapes.values())
    if form.bits == 16:
        return 2 * sum(map(math.prod, shapes.values())) + (0 if form.static else 2 * whole) + sd15_always()
    if form.rank:
        described = describe(shapes, encoder.difference_shapes(), form.settings())
        return bytes_of(described) + len(json.dumps(described.to_json())) + sd15_always()
    rows = sum(4 * shape[0] if len(shape) > 1 else 4 for shape in shapes.values())
    codes = sum(packed_size(math.prod(shape), form.bits) for shape in shapes.values())
    return rows + codes + bytes_of(describe({}, encoder.difference_shapes(), CompactSettings())) + sd15_always()


def _sides(shape: tuple[int, ...]) -> int:
    return shape[0] + math.prod(shape[1:])
