"""Two judges of different architecture that read pictures of the mini world: attributes, and who it is.

Both are trained from the training split alone, share nothing with the image backbone, and see renderings and their VAE
reconstructions (``train_judges.py``). A conclusion must hold with both.

Each first finds where the subject is and how large, and looks at it as if it stood in the middle: then an eye is always in
about the same place, and few pictures teach what it looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attributes import DOMAINS, EDITS, Scene
from .renderer import SIZE, ZOOM
from .unet import GroupNorm

ARCHITECTURES = {"judge-a": "convolutional", "judge-b": "attentive"}
IDENTITY_WIDTH = 64
FEATURES = 512
CENTER = (SIZE / 2, SIZE / 2 + 5)  # pixels; where the renderer's origin lies in an unshifted picture
SHIFT_UNIT = 8.0  # pixels


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


@dataclass(frozen=True)
class Place:
    """Where ``B`` subjects are.

    Attributes:
        scale: ``(B,)``, 1 for a portrait.
        shift: ``(B, 2)`` pixels to the right and down.
    """

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> Place:
        return cls(torch.tensor([ZOOM[s.zoom] for s in scenes]), torch.tensor([s.shift for s in scenes]))


def centered(pictures: Tensor, place: Place) -> Tensor:
    """Pictures as unshifted portraits; what lies outside continues the border."""
    count, center = len(pictures), torch.tensor(CENTER)
    # grid_sample counts from -1 to 1 between the outer edges: source = scale * target + rest.
    rest = (center + place.shift - place.scale[:, None] * center) / (SIZE / 2) - 1 + place.scale[:, None]
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = place.scale, place.scale, rest
    grid = F.affine_grid(theta, [count, 3, SIZE, SIZE], align_corners=False)
    return F.grid_sample(pictures.float(), grid, padding_mode="border", align_corners=False)


class _Locator(nn.Module):
    """Pictures -> zoom ``(B, 3)`` as logits and shift ``(B, 2)``, from a quarter of their resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 32, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * 64, 128),
            nn.SiLU(),
            nn.Linear(128, len(ZOOM) + 2),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.body(F.avg_pool2d(x, 4)).float()
        return found[:, : len(ZOOM)], found[:, len(ZOOM) :] * SHIFT_UNIT


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _convolutional() -> nn.Sequential:
    """Pictures -> ``(B, FEATURES)``: strided convolutions, read out at every place of an 8x8 map."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.SiLU(), nn.Conv2d(32, 64, 3, 2, 1)]
    for before, after in ((64, 96), (96, 128)):
        layers += [_Residual(before), nn.Conv2d(before, after, 3, stride=2, padding=1)]
    layers += [_Residual(128), nn.SiLU(), nn.Conv2d(128, 48, 1), nn.Flatten(), nn.Linear(48 * 64, FEATURES), nn.SiLU()]
    return nn.Sequential(*layers)


class _Block(nn.Module):
    """A transformer block. Attention is spelled out: on a CPU the fused one's backward pass is slow at these sizes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1).to(v.dtype)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, n, width))
        return x + self.mlp(self.norm2(x))


class _Attentive(nn.Module):
    """Pictures -> ``(B, FEATURES)``: a transformer over the 64 cells of a short convolutional stem."""

    def __init__(self, width: int = 160, depth: int = 4, heads: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, stride=4, padding=3),
            nn.SiLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(128, width, 3, stride=2, padding=1),
        )
        self.position = nn.Parameter(torch.randn(64, width) * 0.1)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.narrow = nn.Linear(width, 48)
        self.out = nn.Linear(64 * 48, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return F.silu(self.out(self.narrow(self.norm(tokens)).flatten(1)))


@dataclass(frozen=True)
class Reading:
    """What a judge says of ``B`` pictures.

    Attributes:
        logits: question -> ``(B, answers)``; of "zoom" as the locator says.
        shift: ``(B, 2)`` pixels, where the subject is.
        measures: measure -> ``(B,)``, geometry in about [0, 1].
        identity: unit vectors ``(B, 64)``; the cosine of two tells whether it is the same individual.
    """

    logits: dict[str, Tensor]
    shift: Tensor
    measures: dict[str, Tensor]
    identity: Tensor

    def answer(self, question: str) -> Tensor:
        """The most likely answer's index ``(B,)``."""
        return self.logits[question].argmax(1)


class Judge(nn.Module):
    """Args:
    architecture: "convolutional" or "attentive".
    """

    def __init__(self, architecture: str) -> None:
        super().__init__()
        self.locate = _Locator()
        self.trunk: nn.Module = _convolutional() if architecture == "convolutional" else _Attentive()
        self.questions = questions()
        self.classify = nn.Linear(FEATURES, sum(self.questions.values()))
        self.measure = nn.Linear(FEATURES, len(measures()))
        # Who it is follows from what is read of the person, and from nothing of the scene.
        self.personal = [q for q in self.questions if q != "domain" and q not in EDITS]
        width = sum(self.questions[q] for q in self.personal) + len(measures())
        self.identify = nn.Sequential(nn.Linear(width, 256), nn.SiLU(), nn.Linear(256, IDENTITY_WIDTH))

    def forward(self, pictures: Tensor, place: Place | None = None) -> Reading:
        """Reads pictures ``(B, 3, 128, 128)`` in [0, 1].

        Args:
            place: where the subjects are, if it is known (in training); otherwise it is found.
        """
        x = (2 * pictures - 1).contiguous(memory_format=torch.channels_last)
        zoom, shift = self.locate(x)
        if place is None:
            place = Place(torch.tensor(ZOOM)[zoom.argmax(1)], shift)
        features = self.trunk(centered(x, place).contiguous(memory_format=torch.channels_last))
        parts = self.classify(features).float().split(list(self.questions.values()), dim=1)
        logits = dict(zip(self.questions, parts, strict=True)) | {"zoom": zoom}
        numbers = self.measure(features).float()
        person = torch.cat([*(logits[q].softmax(1) for q in self.personal), numbers], dim=1)
        return Reading(
            logits,
            shift,
            dict(zip(measures(), numbers.unbind(1), strict=True)),
            F.normalize(self.identify(person).float(), dim=1),
        )

    @torch.no_grad()
    def read(self, pictures: Tensor, batch: int = 64) -> Reading:
        """As ``forward``, for any number of pictures, in float32 and without gradients."""
        parts = [self(p) for p in pictures.split(batch)]
        return Reading(
            {q: torch.cat([p.logits[q] for p in parts]) for q in self.questions},
            torch.cat([p.shift for p in parts]),
            {m: torch.cat([p.measures[m] for p in parts]) for m in measures()},
            torch.cat([p.identity for p in parts]),
        )
