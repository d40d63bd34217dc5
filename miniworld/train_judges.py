"""``train judge-a`` and ``train judge-b``: attribute read-outs and an identity net, each of its own architecture and seed.

Half of the pictures of twins are reconstructions of the VAE. Every picture is moved and, half of the time, mirrored
(left and right marks change places), so that few pictures are many. The identity net learns from pairs: the same individual in
two scenes, its twin who differs in one thing only, and strangers. Cosines go through one scale and one bias into a
logistic loss, so that one threshold separates all pairs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attributes import DOMAINS, EDITS, Identity, Scene
from .dataset import Pictures, shifted
from .judge import ARCHITECTURES, SHIFT_UNIT, Judge, Place, Reading, measures, questions
from .judge_pairs import PICTURES_EACH, Twins
from .models import channels_last
from .training import Run, Schedule
from .visibility import true_value

IGNORED = -100
SHIFT = 6  # pixels; without it a judge remembers pictures: 0.82 of the answers right in training, 0.6 on held-out ones
SHIFT_ERROR, SCALE_ERROR = 1.0, 0.02  # pixels, and a share
NOISE = 0.02  # of [0, 1]; sampled pictures are never as clean as drawn ones


@lru_cache(maxsize=65536)
def truth(identity: Identity, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Answers to all questions (``IGNORED`` for the other domain's) and all measures (NaN likewise)."""

    def known(name: str) -> bool:
        return name in EDITS or name.startswith(f"{identity.domain} ")

    answers = {q: true_value(identity, scene, q) if known(q) else IGNORED for q in questions()}
    answers["domain"] = list(DOMAINS).index(identity.domain)
    if identity.domain == "face" and identity.value("hair style") == "bald":  # nobody can know: learning it is noise
        answers["face mark hair"] = IGNORED
        if identity.value("beard") == "none":
            answers["face hair colour"] = IGNORED
    numbers = [true_value(identity, scene, m) if known(m) else float("nan") for m in measures()]
    return np.array(list(answers.values())), np.array(numbers, dtype=np.float32)


@lru_cache(maxsize=65536)
def mirrored(identity: Identity) -> Identity:
    """Who is seen in the mirror: what was on the left is on the right."""
    kinds = dict(zip(identity.spec.marks, identity.marks, strict=True))
    swap = {"left": "right", "right": "left"}
    places = [" ".join(swap.get(word, word) for word in place.split()) for place in kinds]
    return replace(identity, marks=tuple(kinds[place] for place in places))


def reading_loss(reading: Reading, contents: list[tuple[Identity, Scene]]) -> tuple[Tensor, dict[str, float]]:
    """Mean cross-entropy of the answers plus the squared error of the measures in units of their variance."""
    answers, numbers = (torch.from_numpy(np.stack(column)) for column in zip(*(truth(*c) for c in contents)))
    losses, right, asked = [], 0.0, 0
    for column, logits in enumerate(reading.logits.values()):
        target = answers[:, column]
        count = int((target != IGNORED).sum())
        if count:
            losses.append(F.cross_entropy(logits, target, ignore_index=IGNORED))
            right += float((logits.detach().argmax(1) == target).sum())
            asked += count
    errors = torch.stack(list(reading.measures.values()), dim=1) - numbers.nan_to_num()
    geometry = errors.square()[~numbers.isnan()].mean() * 12
    return torch.stack(losses).mean() + geometry, {"right": right / asked, "geometry": float(geometry.detach())}


class PairLoss(nn.Module):
    """Logistic loss on scaled cosines: same individual, told-apart twins and strangers weigh equally."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.tensor(-7.0))

    def forward(self, identity: Tensor, told_apart: Tensor) -> Tensor:
        """``identity`` ``(4 G, 64)`` in groups A1, B1, A2, B2; ``told_apart`` ``(G,)``."""
        logits = self.scale.exp() * (identity @ identity.T) + self.bias
        count = len(identity)
        group = torch.arange(count) // PICTURES_EACH
        person = torch.arange(count) % 2
        mine = group[:, None] == group[None]
        same = mine & (person[:, None] == person[None]) & ~torch.eye(count, dtype=torch.bool)
        twins = mine & (person[:, None] != person[None]) & told_apart[group][:, None]
        parts = [F.softplus(-logits[same]).mean(), F.softplus(logits[~mine]).mean()]
        if twins.any():
            parts.append(F.softplus(logits[twins]).mean())
        return torch.stack(parts).mean()


class _Trained(nn.Module):
    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge, self.pairs = judge, PairLoss()


def train(
    folder: Path, name: str, pictures: Pictures, twins: Twins, schedule: Schedule, batch: int, seed: int
) -> Judge:
    """Trains one judge; three quarters of a batch of ``batch`` pictures are twins."""
    torch.manual_seed(seed)
    trained = channels_last(_Trained(Judge(ARCHITECTURES[name])))
    run = Run(folder, trained, schedule)
    groups = batch * 3 // 4 // PICTURES_EACH
    plain = pictures.batches(batch - groups * PICTURES_EACH, seed, run.step)
    paired = twins.batches(groups, seed, run.step)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        pairs, others = next(paired), next(plain)
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        x = torch.cat([pairs.pictures, pictures[others]])
        contents = pairs.contents + [pictures.contents(i) for i in others]
        place = Place.of([scene for _, scene in contents])
        # A group is mirrored as a whole: a person and its mirror image are two people.
        flips = torch.rand(groups + len(others), generator=rng) < 0.5
        flips = torch.cat([flips[:groups].repeat_interleave(PICTURES_EACH), flips[groups:]])
        x = torch.where(flips.view(-1, 1, 1, 1), x.flip(-1), x)
        contents = [(mirrored(i), s) if flip else (i, s) for flip, (i, s) in zip(flips.tolist(), contents, strict=True)]
        # Mirrored and moved, where the subject is is still known.
        moves = torch.randint(-SHIFT, SHIFT + 1, (len(x), 2), generator=rng)
        x = shifted(x, moves)
        shift = torch.where(flips[:, None], place.shift * torch.tensor([-1.0, 1.0]), place.shift) + moves
        x = x + NOISE * torch.rand(len(x), 1, 1, 1, generator=rng) * torch.randn(x.shape, generator=rng)
        # A reader must bear what its own locator will get wrong.
        near = Place(
            place.scale * (1 + SCALE_ERROR * torch.randn(len(x), generator=rng)),
            shift + SHIFT_ERROR * torch.randn(len(x), 2, generator=rng),
        )
        reading = trained.judge(x, near)
        value, parts = reading_loss(reading, contents)
        located = (reading.shift - shift).square().mean()
        told = trained.pairs(reading.identity[: len(pairs.pictures)], pairs.told_apart)
        parts |= {"pairs": float(told.detach()), "pixels off": float(located.detach().sqrt())}
        return value + told + located / SHIFT_UNIT**2, parts

    run.train(loss)
    run.finish()
    return trained.judge.eval().requires_grad_(False)
