"""``train backbone``: the image backbone, contrastively on picture-caption pairs of the training split, as CLIP is.

The text side is the frozen text encoder with a new projection. No attribute label is used, and nothing is shared with
a judge. Every picture has two captions: one of the base model's, and one that says everything of the subject that words
can say and nothing of the scene; without it, background and style would be all that tells a batch's pictures apart.
Gate: the right caption among 64 is found for at least half of the pictures.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e4t_core.clip_backbone import build_vision_tower
from e4t_core.domain_info import BackboneInfo

from .attributes import identities_of, random_scene
from .backbone import MEAN, READ_BLOCKS, STD, VISION_CONFIG, WIDTH
from .captions import compose, describe, subject_phrases
from .dataset import Pictures, shifted
from .renderer import render
from .text_encoder import WIDTH as TEXT_WIDTH
from .text_encoder import TextEncoder, pad_tokens, tokenize
from .training import Run, Schedule

EMBEDDING = 128
SHIFT = 6  # pixels
INFO = BackboneInfo(
    kind="open_clip",
    architecture=json.dumps({"embed_dim": EMBEDDING, "vision_cfg": VISION_CONFIG}),
    layers=READ_BLOCKS,
    width=WIDTH,
    image_size=int(VISION_CONFIG["image_size"]),
    mean=MEAN,
    std=STD,
    weights_inside=True,
)


class ContrastiveTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = build_vision_tower(INFO)
        self.text_projection = nn.Linear(TEXT_WIDTH, EMBEDDING, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.3))

    def similarities(self, pictures: Tensor, text_states: Tensor) -> Tensor:
        """Pictures ``(B, 3, 128, 128)`` in [0, 1], end states ``(B, 768)`` -> scaled cosines ``(B, B)``."""
        images = F.normalize(self.tower((pictures - 0.5) / 0.5).float(), dim=-1)
        texts = F.normalize(self.text_projection(text_states).float(), dim=-1)
        return self.scale.exp().clamp_max(100) * images @ texts.T


def _end_states(text: TextEncoder, captions: list[str]) -> Tensor:
    """The hidden state ``(B, 768)`` at each caption's end token."""
    ends = torch.tensor([1 + len(tokenize(c)) for c in captions])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        states = text(pad_tokens(captions)[:, : int(ends.max()) + 1])  # what follows the end cannot reach it
    return states[torch.arange(len(captions)), ends].float()


class _Captions:
    """End states of the pictures' two captions, computed when first asked for."""

    def __init__(self, text: TextEncoder, pictures: Pictures, seed: int) -> None:
        self.text, self.pictures, self.seed = text, pictures, seed
        self.kept: dict[tuple[int, int], Tensor] = {}

    def _caption(self, index: int, variant: int) -> str:
        identity, scene = self.pictures.contents(index)
        if variant:
            return compose(scene.style, identity.spec.word, subject_phrases(identity))
        return describe(identity, scene, np.random.default_rng([self.seed, index])).text

    def __call__(self, keys: list[tuple[int, int]]) -> Tensor:
        missing = [key for key in dict.fromkeys(keys) if key not in self.kept]
        if missing:
            states = _end_states(self.text, [self._caption(*key) for key in missing])
            self.kept.update(zip(missing, states.unbind(), strict=True))
        return torch.stack([self.kept[key] for key in keys])


def train(
    folder: Path, pictures: Pictures, text: TextEncoder, schedule: Schedule, batch: int, seed: int
) -> ContrastiveTraining:
    torch.manual_seed(seed)
    model = ContrastiveTraining()
    run = Run(folder, model, schedule)
    batches = pictures.batches(batch, seed, run.step)
    captions = _Captions(text, pictures, seed)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        chosen = next(batches)
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        x = pictures[chosen]
        mirrored = torch.rand(batch, 1, 1, 1, generator=rng) < 0.5  # captions never say left or right
        x = torch.where(mirrored, x.flip(-1), x)
        x = shifted(x, torch.randint(-SHIFT, SHIFT + 1, (batch, 2), generator=rng))
        said = torch.randint(2, (batch,), generator=rng).tolist()
        logits = model.similarities(x, captions(list(zip(chosen, said, strict=True))))
        target = torch.arange(batch)
        value = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return value, {"found": float((logits.argmax(1) == target).float().mean())}

    run.train(loss)
    return run.finish()  # type: ignore[return-value]


def gate(model: ContrastiveTraining, text: TextEncoder, groups: int = 8) -> float:
    """How often the right one of 64 captions is the closest, over validation faces and cats."""
    rng = np.random.default_rng(5)
    identities = [*identities_of("face", "validation", groups * 48), *identities_of("cat", "validation", groups * 16)]
    order = rng.permutation(len(identities))
    found = []
    for group in np.array_split(order, groups):
        chosen = [identities[i] for i in group]
        scenes = [random_scene(rng) for _ in chosen]
        captions = [describe(i, s, rng) for i, s in zip(chosen, scenes, strict=True)]
        with torch.no_grad():
            logits = model.similarities(render(chosen, scenes), _end_states(text, [c.text for c in captions]))
        said = torch.tensor([bool(c.text) for c in captions])
        found.append((logits.argmax(1) == torch.arange(len(chosen)))[said].float().mean())
    return float(torch.stack(found).mean())
