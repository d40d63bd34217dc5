"""``train backbone``: the image backbone, contrastively on picture-caption pairs of the training split, as CLIP is.

The text side is the frozen text encoder with a new projection. No attribute label is used, and nothing is shared with
a judge. Every picture has captions of three kinds: one of the base model's; one that says everything of the subject that
words can say and nothing of the scene, because else background and style would tell a batch's pictures apart; and one
for each single thing that words can say of the subject. The last kind is true of several pictures of a batch at once,
and all of them are to be found by it: few pictures are so alike that a hair style must be seen to tell them apart.
Gate: the right caption among 64 is found for at least half of the pictures.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e4t_core.methods.e4t.clip_backbone import build_vision_tower
from e4t_core.methods.e4t.domain_info import BackboneInfo

from .attributes import Identity, Scene, identities_of, random_scene
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

    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures ``(B, 3, 128, 128)`` in [0, 1] -> unit vectors ``(B, 128)``."""
        return F.normalize(self.tower((pictures - 0.5) / 0.5).float(), dim=-1)

    def similarities(self, images: Tensor, text_states: Tensor) -> Tensor:
        """Unit vectors ``(B, 128)``, end states ``(C, 768)`` -> scaled cosines ``(B, C)``."""
        texts = F.normalize(self.text_projection(text_states).float(), dim=-1)
        return self.scale.exp().clamp_max(100) * images @ texts.T


def _end_states(text: TextEncoder, captions: list[str]) -> Tensor:
    """The hidden state ``(B, 768)`` at each caption's end token."""
    ends = torch.tensor([1 + len(tokenize(c)) for c in captions])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        states = text(pad_tokens(captions)[:, : int(ends.max()) + 1])  # what follows the end cannot reach it
    return states[torch.arange(len(captions)), ends].float()


class _EndStates:
    """End states of captions, computed when first asked for."""

    def __init__(self, text: TextEncoder) -> None:
        self.text = text
        self.kept: dict[str, Tensor] = {}

    def __call__(self, captions: list[str]) -> Tensor:
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self.kept]
        if missing:
            self.kept.update(zip(missing, _end_states(self.text, missing).unbind(), strict=True))
        return torch.stack([self.kept[caption] for caption in captions])


def one_phrase_captions(identity: Identity, scene: Scene) -> list[str]:
    """Captions that say one thing of the subject each; all are true of the picture."""
    return [compose(scene.style, identity.spec.word, [phrase]) for phrase in subject_phrases(identity)]


def matching_loss(logits: Tensor, matches: Tensor) -> Tensor:
    """Contrastive loss where several captions may be true of a picture, and of several pictures.

    Args:
        logits: ``(B, C)``.
        matches: ``(B, C)`` booleans, at least one in every row and column.
    """
    of_picture = matches / matches.sum(1, keepdim=True)
    of_caption = matches / matches.sum(0, keepdim=True)
    return (F.cross_entropy(logits, of_picture) + F.cross_entropy(logits.T, of_caption.T)) / 2


def train(
    folder: Path, pictures: Pictures, text: TextEncoder, schedule: Schedule, batch: int, seed: int
) -> ContrastiveTraining:
    torch.manual_seed(seed)
    model = ContrastiveTraining()
    run = Run(folder, model, schedule)
    batches = pictures.batches(batch, seed, run.step)
    states = _EndStates(text)

    def whole_caption(index: int, variant: int) -> str:
        identity, scene = pictures.contents(index)
        if variant:
            return compose(scene.style, identity.spec.word, subject_phrases(identity))
        return describe(identity, scene, np.random.default_rng([seed, index])).text

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        chosen = next(batches)
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        x = pictures[chosen]
        mirrored = torch.rand(batch, 1, 1, 1, generator=rng) < 0.5  # captions never say left or right
        x = torch.where(mirrored, x.flip(-1), x)
        x = shifted(x, torch.randint(-SHIFT, SHIFT + 1, (batch, 2), generator=rng))
        images = model.embed(x)
        said = torch.randint(2, (batch,), generator=rng).tolist()
        whole = [whole_caption(*key) for key in zip(chosen, said, strict=True)]
        logits = model.similarities(images, states(whole))
        own = torch.eye(batch, dtype=torch.bool)
        known = [one_phrase_captions(*pictures.contents(index)) for index in chosen]
        drawn = torch.rand(batch, generator=rng).tolist()
        phrases = list(dict.fromkeys(k[int(u * len(k))] for k, u in zip(known, drawn, strict=True)))
        matches = torch.tensor([[phrase in k for phrase in phrases] for k in known])
        value = matching_loss(logits, own) + matching_loss(model.similarities(images, states(phrases)), matches)
        return value, {"found": float((logits.argmax(1) == torch.arange(batch)).float().mean())}

    run.train(loss)
    return run.finish()


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
            logits = model.similarities(
                model.embed(render(chosen, scenes)), _end_states(text, [c.text for c in captions])
            )
        said = torch.tensor([bool(c.text) for c in captions])
        found.append((logits.argmax(1) == torch.arange(len(chosen)))[said].float().mean())
    return float(torch.stack(found).mean())
