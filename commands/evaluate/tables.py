"""From rows to figures: for each network and each class of prompts what is printed, people counted alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .intervals import Interval, mean, share
from .likeness import Bounds, Score
from .rows import Row

ALL = "all prompts"


@dataclass(frozen=True)
class Figures:
    """What one network says of the pictures of one class.

    Attributes:
        group: the class, or ``ALL``.
        pictures: that were drawn, of people that it can judge.
        faceless: without a found face.
        identity: the mean score.
        to_photo: the mean similarity to the learned photo, of pictures with a face; none without any.
        floor: the mean of strangers' photos, for the same people.
        ceiling: the mean of the learned photos, for the same people.
        share: how far identity is on the way from floor to ceiling.
    """

    group: str
    pictures: int
    faceless: int
    identity: Interval
    to_photo: float | None
    floor: float
    ceiling: float
    share: Interval


@dataclass(frozen=True)
class Adherence:
    """What CLIP says of the pictures of one class.

    Attributes:
        group: the class, or ``ALL``.
        prompt: mean similarity to the prompt.
        other_prompts: the mean to prompts of other classes, the floor; none where there is one class.
        likeness: as ``Figures``, of whole pictures.
    """

    group: str
    prompt: Interval
    other_prompts: float | None
    likeness: Figures


def in_groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The rows of pictures, all of them first, then by class; failed jobs are left out."""
    pictures = [row for row in rows if row.drawn.file is not None]
    names = list(dict.fromkeys(row.drawn.prompt.group for row in pictures))
    parts = [(name, [row for row in pictures if row.drawn.prompt.group == name]) for name in names]
    return [(ALL, pictures), *(parts if len(parts) > 1 else [])] if pictures else []


def figures(rows: Sequence[Row], network: str, bounds: Mapping[int, Bounds]) -> list[Figures]:
    """What an identity network says, all prompts first."""
    made = [_figures(name, part, bounds, lambda row: row.identity.get(network)) for name, part in in_groups(rows)]
    return [figure for figure in made if figure is not None]


def adherence(rows: Sequence[Row], bounds: Mapping[int, Bounds]) -> list[Adherence]:
    """What CLIP says, all prompts first."""
    made = []
    for name, part in in_groups(rows):
        likeness = _figures(name, part, bounds, lambda row: row.likeness)
        prompt = _by_person(part, lambda row: row.prompt)
        if likeness is None or not prompt:
            continue
        others = _by_person(part, lambda row: row.other_prompts)
        made.append(
            Adherence(
                name, mean(list(prompt.values())), float(np.mean(list(others.values()))) if others else None, likeness
            )
        )
    return made


def _figures(
    group: str, rows: Sequence[Row], bounds: Mapping[int, Bounds], said: Callable[[Row], Score | None]
) -> Figures | None:
    scores = [score for row in rows if (score := said(row)) is not None]
    if not scores:
        return None
    values = _by_person(rows, lambda row: None if (given := said(row)) is None else given.identity)
    floors, ceilings = ([getattr(bounds[number], name) for number in values] for name in ("floor", "ceiling"))
    to_photo = _by_person(rows, lambda row: None if (given := said(row)) is None else given.to_photo)
    return Figures(
        group,
        len(scores),
        sum(not score.found for score in scores),
        mean(list(values.values())),
        float(np.mean(list(to_photo.values()))) if to_photo else None,
        float(np.mean(floors)),
        float(np.mean(ceilings)),
        share(list(values.values()), floors, ceilings),
    )


def _by_person(rows: Sequence[Row], value: Callable[[Row], float | None]) -> dict[int, float]:
    """The mean for each person, by number."""
    held: dict[int, list[float]] = {}
    for row in rows:
        if (given := value(row)) is not None:
            held.setdefault(row.drawn.person, []).append(given)
    return {number: float(np.mean(values)) for number, values in held.items()}
