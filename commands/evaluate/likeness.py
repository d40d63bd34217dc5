"""How like a person pictures are, between the floor that strangers' photos set and the ceiling of the person's own.

For a person with the reference photos R and a picture x

    S(x) = mean over r in R of similarity(x, r)

is the picture's score (the paper's average pairwise similarity, with photos that were not learned). The *ceiling* is S of the learned
photo itself; the *floor* is the mean of S over the learned photos of all others. A picture in which no face is found scores the
floor, as a stranger would. Where the learned photo itself has no face that is found, the ceiling is the floor, too. Reference photos
without a found face do not judge; a person without any that does is left out for this network, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .people import Person
from .seen import Seen


@dataclass(frozen=True)
class Bounds:
    """What a person's pictures are measured by.

    Attributes:
        references: ``(R, D)`` vectors of the photos that judge.
        concept: ``(1, D)`` vector of the learned photo; ``(0, 1)`` without a found face.
        floor: score of strangers' photos.
        ceiling: score of the learned photo.
    """

    references: np.ndarray
    concept: np.ndarray
    floor: float
    ceiling: float


@dataclass(frozen=True)
class Score:
    """What one network says of one picture.

    Attributes:
        found: whether there was a face.
        identity: the score, or the floor without a face.
        to_photo: similarity to the learned photo alone; none where either has no face.
    """

    found: bool
    identity: float
    to_photo: float | None


def bounds(seen: Seen, people: Sequence[Person]) -> dict[int, Bounds]:
    """By number, of the people that this network can judge. All photos have been looked at."""
    similarity = seen.network.similarity
    concepts = {person.number: seen.vectors([person.concept.digest]) for person in people}
    with_face = [person.number for person in people if len(concepts[person.number])]
    made = {}
    for person in people:
        references = seen.vectors([photo.digest for photo in person.references])
        strangers = [concepts[number] for number in with_face if number != person.number]
        if not len(references) or not strangers:
            continue
        floor = float(similarity(np.concatenate(strangers), references).mean())
        concept = concepts[person.number]
        ceiling = float(similarity(concept, references).mean()) if len(concept) else floor
        made[person.number] = Bounds(references, concept, floor, ceiling)
    return made


def score(seen: Seen, bounds: Bounds, digest: str) -> Score:
    """The score of a picture of the person with these bounds."""
    if not seen.found(digest):
        return Score(False, bounds.floor, None)
    similarity, vector = seen.network.similarity, seen.vectors([digest])
    to_photo = float(similarity(vector, bounds.concept)[0, 0]) if len(bounds.concept) else None
    return Score(True, float(similarity(vector, bounds.references).mean()), to_photo)


@dataclass(frozen=True)
class Spread:
    """Similarities of many pairs of photos: their mean, and what 5 % and 95 % of them are below."""

    mean: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class Calibration:
    """What a network says of the real photos alone.

    Attributes:
        photos: looked at.
        faceless: without a found face.
        same: pairs of photos of one person.
        other: pairs of learned photos of two people.
        told_apart: share of pairs on the right side of the best threshold, both kinds counted alike.
    """

    photos: int
    faceless: int
    same: Spread
    other: Spread
    told_apart: float


def calibrate(seen: Seen, people: Sequence[Person]) -> Calibration | None:
    """Of the photos of these people, all looked at; none where there are no pairs of one of both kinds."""
    similarity = seen.network.similarity
    photos = [photo.digest for person in people for photo in person.photos]
    same = [_pairs(similarity, seen.vectors([photo.digest for photo in person.photos])) for person in people]
    within = np.concatenate(same)
    across = _pairs(similarity, seen.vectors([person.concept.digest for person in people]))
    if not len(within) or not len(across):
        return None
    return Calibration(
        len(photos),
        sum(not seen.found(digest) for digest in photos),
        _spread(within),
        _spread(across),
        _told_apart(within, across),
    )


def _pairs(similarity: Callable[[np.ndarray, np.ndarray], np.ndarray], vectors: np.ndarray) -> np.ndarray:
    if len(vectors) < 2:
        return np.zeros(0)
    above = np.triu_indices(len(vectors), 1)
    return np.asarray(similarity(vectors, vectors)[above])


def _spread(values: np.ndarray) -> Spread:
    low, high = np.quantile(values, [0.05, 0.95])
    return Spread(float(values.mean()), float(low), float(high), len(values))


def _told_apart(within: np.ndarray, across: np.ndarray) -> float:
    within, across = np.sort(within), np.sort(across)
    thresholds = np.concatenate([within, across])
    right = 1 - np.searchsorted(within, thresholds) / len(within)
    return float(((right + np.searchsorted(across, thresholds) / len(across)) / 2).max())
