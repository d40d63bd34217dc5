"""Two judges of different architecture that read pictures of the mini world: attributes, and who it is.

Both are trained from the training split alone, share nothing with the image backbone, and see renderings and their VAE
reconstructions. A conclusion must hold with both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attributes import DOMAINS, EDITS

IDENTITY_WIDTH = 64


def questions() -> dict[str, int]:
    """Every classification read-out and its number of answers."""
    heads = {"domain": len(DOMAINS)} | {edit: len(values) for edit, values in EDITS.items()}
    for domain, spec in DOMAINS.items():
        heads |= {f"{domain} {attribute}": len(values) for attribute, values in spec.named.items()}
        heads |= {f"{domain} mark {place}": len(kinds) for place, kinds in spec.marks.items()}
    return heads


def measures() -> list[str]:
    """Every regression read-out."""
    return [f"{domain} {name}" for domain, spec in DOMAINS.items() for name in spec.geometry]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _convolutional() -> nn.Sequential:
    """Pictures -> ``(B, 384)``: strided convolutions, read out at every place of an 8x8 map."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 5, stride=2, padding=2)]
    for before, after in ((32, 48), (48, 64), (64, 96)):
        layers += [_Residual(before), nn.Conv2d(before, after, 3, stride=2, padding=1)]
    return nn.Sequential(
        *layers, _Residual(96), nn.SiLU(), nn.Conv2d(96, 32, 1), nn.Flatten(), nn.Linear(32 * 64, 384), nn.SiLU()
    )


class _Attentive(nn.Module):
    """Pictures -> ``(B, 384)``: a transformer over 8-pixel patches, read out by 24 learned queries."""

    def __init__(self, width: int = 128, depth: int = 5, queries: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.position = nn.Parameter(torch.randn(256, width) * 0.1)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 3 * width, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.1)
        self.collect = nn.MultiheadAttention(width, 4, batch_first=True)
        self.out = nn.Linear(queries * width, 384)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        found, _ = self.collect(self.queries.expand(len(x), -1, -1), tokens, tokens, need_weights=False)
        return F.silu(self.out(found.flatten(1)))


class Judge(nn.Module):
    """Args:
    architecture: "convolutional" or "attentive".
    """

    def __init__(self, architecture: str) -> None:
        super().__init__()
        self.trunk: nn.Module = _convolutional() if architecture == "convolutional" else _Attentive()
        self.questions = questions()
        self.classify = nn.Linear(384, sum(self.questions.values()))
        self.measure = nn.Linear(384, len(measures()))
        self.identify = nn.Sequential(nn.Linear(384, 256), nn.SiLU(), nn.Linear(256, IDENTITY_WIDTH))

    def forward(self, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Pictures ``(B, 3, 128, 128)`` in [0, 1] -> logits by question, measures ``(B, G)`` in about [0, 1], and unit
        identity vectors ``(B, 64)``."""
        features = self.trunk(2 * pictures - 1)
        logits = self.classify(features).float().split(list(self.questions.values()), dim=1)
        identity = F.normalize(self.identify(features).float(), dim=1)
        return dict(zip(self.questions, logits, strict=True)), self.measure(features).float(), identity
