"""The mini world's text encoder: a narrow transformer that expands exactly into Stable Diffusion 1.x's CLIP-L.

Two layers with half of CLIP-L's heads and a third of its MLP units are trained; in the exported CLIP-L the unused heads and
units are zero and the other ten layers add nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .captions import vocabulary

WIDTH, LENGTH, VOCABULARY, CLIP_LAYERS, CLIP_MLP = 768, 77, 49408, 12, 3072
START, END = 49406, 49407
ROW_NORM = 0.38  # of CLIP-L's word rows, on which the method's scale s = 0.1 rests


@cache
def tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@cache
def tokenize(text: str) -> tuple[int, ...]:
    """Token ids without start, end and padding."""
    return tuple(tokenizer().encode(text))


def pad_tokens(texts: list[str]) -> Tensor:
    """Texts -> ids ``(B, 77)``: start, words, end, and end again as padding, as Stable Diffusion 1.x has it."""
    rows = [[START, *tokenize(t)[: LENGTH - 2]] for t in texts]
    return torch.tensor([row + [END] * (LENGTH - len(row)) for row in rows])


@dataclass(frozen=True)
class TextShape:
    layers: int = 2
    heads: int = 6
    mlp: int = 1024

    @property
    def attention_width(self) -> int:
        return self.heads * 64


class _Layer(nn.Module):
    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        inner = shape.attention_width
        self.heads = shape.heads
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, shape.mlp), nn.Linear(shape.mlp, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer_norm1(x)
        q, k, v = (
            p(h).view(*h.shape[:2], self.heads, 64).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out_proj(y.transpose(1, 2).flatten(2))
        h = self.fc1(self.layer_norm2(x))
        return x + self.fc2(h * torch.sigmoid(1.702 * h))


def word_rows(seed: int = 0) -> Tensor:
    """The fixed random rows ``(49408, 768)`` of words that this world does not know, of CLIP-like norm."""
    rows = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(seed))
    return rows * (ROW_NORM / rows.norm(dim=1, keepdim=True))


class TextEncoder(nn.Module):
    """Token ids ``(B, 77)`` -> hidden states ``(B, 77, 768)`` behind the final norm; shorter rows work as well."""

    known: Tensor
    lookup: Tensor
    unknown: Tensor

    def __init__(self, shape: TextShape = TextShape()) -> None:
        super().__init__()
        self.shape = shape
        known = sorted({t for text in vocabulary() for t in tokenize(text)} | {START, END} | set(tokenize(",")))
        self.register_buffer("known", torch.tensor(known))
        lookup = torch.full((VOCABULARY,), -1)
        lookup[self.known] = torch.arange(len(known))
        self.register_buffer("lookup", lookup, persistent=False)
        self.register_buffer("unknown", word_rows(), persistent=False)
        self.rows = nn.Parameter(torch.randn(len(known), WIDTH) * 0.02)
        self.position = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.005)
        layers = [_Layer(shape) for _ in range(shape.layers)]
        self.layers = nn.ModuleList(layers)
        self.final_layer_norm = nn.LayerNorm(WIDTH)
        for layer in layers:
            nn.init.normal_(layer.out_proj.weight, std=0.01)
            nn.init.normal_(layer.fc2.weight, std=0.01)

    def normalized_rows(self) -> Tensor:
        return self.rows * (ROW_NORM / self.rows.norm(dim=1, keepdim=True))

    def embed(self, tokens: Tensor) -> Tensor:
        """Word rows ``(B, 77, 768)``; unknown words get their fixed random row."""
        place = self.lookup[tokens]
        known = F.embedding(place.clamp_min(0), self.normalized_rows())
        return torch.where((place >= 0)[..., None], known, self.unknown[tokens])

    def transform(self, rows: Tensor) -> Tensor:
        x = rows + self.position[: rows.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.final_layer_norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.transform(self.embed(tokens))


def stock_state(model: TextEncoder) -> dict[str, Tensor]:
    """CLIP-L's full state (``text_model.*``): what the stock text encoder computes with it equals ``model``."""
    rows = word_rows()
    rows[model.known] = model.normalized_rows().detach()
    state = {
        "text_model.embeddings.token_embedding.weight": rows,
        "text_model.embeddings.position_embedding.weight": model.position.detach().clone(),
        "text_model.final_layer_norm.weight": model.final_layer_norm.weight.detach().clone(),
        "text_model.final_layer_norm.bias": model.final_layer_norm.bias.detach().clone(),
    }
    for i in range(CLIP_LAYERS):
        layer = model.layers[i] if i < model.shape.layers else None
        prefix = f"text_model.encoder.layers.{i}"
        for name, rows_out, columns in (
            ("self_attn.q_proj", WIDTH, WIDTH),
            ("self_attn.k_proj", WIDTH, WIDTH),
            ("self_attn.v_proj", WIDTH, WIDTH),
            ("self_attn.out_proj", WIDTH, WIDTH),
            ("mlp.fc1", CLIP_MLP, WIDTH),
            ("mlp.fc2", WIDTH, CLIP_MLP),
        ):
            weight, bias = torch.zeros(rows_out, columns), torch.zeros(rows_out)
            if layer is not None:
                trained = getattr(layer, name.split(".")[1])
                weight[: trained.out_features, : trained.in_features] = trained.weight.detach()
                bias[: trained.out_features] = trained.bias.detach()
            state[f"{prefix}.{name}.weight"], state[f"{prefix}.{name}.bias"] = weight, bias
        for name in ("layer_norm1", "layer_norm2"):
            norm = getattr(layer, name) if layer is not None else None
            state[f"{prefix}.{name}.weight"] = norm.weight.detach().clone() if norm is not None else torch.ones(WIDTH)
            state[f"{prefix}.{name}.bias"] = norm.bias.detach().clone() if norm is not None else torch.zeros(WIDTH)
    return state
