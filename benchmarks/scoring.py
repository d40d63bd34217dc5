"""The benchmark's scores (NAMED, UNNAMED, PROMPT, LEAK) of pictures whose every attribute is known.

A picture is read by a judge and compared with who and what it should show. Only attributes count that can be seen in a
real rendering of that individual in that scene (``miniworld.visibility``), so every arm is asked the same questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from miniworld.attributes import EDITS, Identity, Scene
from miniworld.judge import Judge, Reading, questions
from miniworld.visibility import attributes, true_value, visible


@dataclass(frozen=True)
class Target:
    """What a picture should show.

    Attributes:
        identity: who.
        scene: in what scene; its attributes that were not asked for are the rendering's own.
        asked: the edits that the prompt names ("style", "background", ...).
    """

    identity: Identity
    scene: Scene
    asked: tuple[str, ...]


@dataclass(frozen=True)
class Visibility:
    """Which attributes count in each of ``B`` pictures: attribute -> ``(B,)`` booleans."""

    seen: dict[str, Tensor]

    @classmethod
    def of(cls, targets: Sequence[Target]) -> Visibility:
        """Asks the renderer; all targets are of one domain."""
        names = [name for name in attributes(targets[0].identity.domain) if name not in EDITS]
        found = visible([t.identity for t in targets], [t.scene for t in targets], names)
        return cls({name: found[:, column] for column, name in enumerate(names)})


@dataclass
class Sums:
    """A numerator and a denominator per picture; a score is the ratio of their sums over any set of pictures."""

    value: np.ndarray
    weight: np.ndarray


def chance_corrected(right: Tensor, answers: int) -> Tensor:
    """``(accuracy - 1/k) / (1 - 1/k)`` of single answers: 1 where right, ``-1/(k-1)`` where wrong."""
    chance = 1 / answers
    return (right.double() - chance) / (1 - chance)


def named(reading: Reading, targets: Sequence[Target], seen: Visibility) -> Sums:
    """NAMED: the mean over a picture's visible named attributes, chance-corrected; weight 1 where there are any."""
    domain = targets[0].identity.domain
    points, counts = torch.zeros(len(targets)).double(), torch.zeros(len(targets)).double()
    for name in targets[0].identity.spec.named:
        attribute = f"{domain} {name}"
        truth = torch.tensor([true_value(t.identity, t.scene, attribute) for t in targets])
        counted = seen.seen[attribute].double()
        right = reading.answer(attribute) == truth
        points += chance_corrected(right, questions()[attribute]) * counted
        counts += counted
    return Sums((points / counts.clamp_min(1)).numpy(), (counts > 0).double().numpy())


@dataclass(frozen=True)
class Unnamed:
    """Errors over geometry and marks, against the true identity and against strangers, one pair of sums each."""

    geometry: Sums
    marks: Sums

    def score(self, rows: np.ndarray | slice = slice(None)) -> float:
        """``1 - error / error against a stranger``; geometry and marks weigh equally."""
        parts = [1 - part.value[rows].sum() / part.weight[rows].sum() for part in (self.geometry, self.marks)]
        return float(np.mean(parts))


def unnamed(reading: Reading, targets: Sequence[Target], seen: Visibility, strangers: Sequence[Identity]) -> Unnamed:
    """UNNAMED's errors for each picture; a stranger's error is the mean over all ``strangers`` but the target itself."""
    domain, spec = targets[0].identity.domain, targets[0].identity.spec
    same = torch.tensor([[s == t.identity for s in strangers] for t in targets])
    parts = {}
    for part, names in (("geometry", spec.geometry), ("marks", [f"mark {place}" for place in spec.marks])):
        own, other, counts = (torch.zeros(len(targets)).double() for _ in range(3))
        for name in names:
            attribute = f"{domain} {name}"
            counted = seen.seen[attribute].double()
            truth = torch.tensor([true_value(t.identity, t.scene, attribute) for t in targets]).double()
            theirs = torch.tensor([true_value(s, targets[0].scene, attribute) for s in strangers]).double()
            if part == "geometry":
                answer = reading.measures[attribute].double().clamp(0, 1)
                errors, against = (answer - truth).abs(), (answer[:, None] - theirs[None]).abs()
            else:
                answer = reading.answer(attribute).double()
                errors, against = (answer != truth).double(), (answer[:, None] != theirs[None]).double()
            against = torch.where(same, torch.nan, against).nanmean(dim=1)
            own, other, counts = own + errors * counted, other + against * counted, counts + counted
        scale = counts.clamp_min(1)
        parts[part] = Sums((own / scale).numpy(), (other / scale).numpy())
    return Unnamed(**parts)


def prompt_classes(reading: Reading, targets: Sequence[Target]) -> dict[str, Sums]:
    """PROMPT: for each class of edit, chance-corrected, over the pictures whose prompt asks for it."""
    found = {}
    for edit, values in EDITS.items():
        asked = torch.tensor([edit in t.asked for t in targets])
        truth = torch.tensor([getattr(t.scene, edit) for t in targets])
        points = chance_corrected(reading.answer(edit) == truth, len(values))
        found[edit] = Sums((points * asked).numpy(), asked.double().numpy())
    return found


def leaks(reading: Reading, photos: Sequence[Scene]) -> Sums:
    """How often the concept photo's background, or the accessory worn in it, appears; no prompt asks for them."""
    background = torch.tensor([s.background for s in photos])
    accessory = torch.tensor([s.accessory for s in photos])
    worn = accessory > 0
    hits = (reading.answer("background") == background).double()
    hits += ((reading.answer("accessory") == accessory) & worn).double()
    return Sums(hits.numpy(), (1 + worn.double()).numpy())


@dataclass(frozen=True)
class Scores:
    """All scores of one arm by one judge; every array has a row for each picture."""

    named: Sums
    unnamed: Unnamed
    prompt: dict[str, Sums]
    leak: Sums
    likeness: np.ndarray = field(repr=False)  # cosine of the identity net with the concept photo


def score(
    judge: Judge,
    pictures: Tensor,
    targets: Sequence[Target],
    seen: Visibility,
    strangers: Sequence[Identity],
    photos: Sequence[Scene],
    photo_identities: Tensor,
) -> Scores:
    """Reads ``pictures`` ``(B, 3, 128, 128)``; ``photo_identities`` ``(B, 64)`` are the same judge's of the photos."""
    reading = judge.read(pictures)
    return Scores(
        named(reading, targets, seen),
        unnamed(reading, targets, seen, strangers),
        prompt_classes(reading, targets),
        leaks(reading, photos),
        (reading.identity * photo_identities).sum(1).double().numpy(),
    )


def ratio(sums: Sums, rows: np.ndarray | slice = slice(None)) -> float:
    """A score over some rows; NaN where nothing counts."""
    weight = sums.weight[rows].sum()
    return float((sums.value[rows] * (sums.weight[rows] > 0)).sum() / weight) if weight else float("nan")
