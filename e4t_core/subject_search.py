"""Where in a photo the subjects are: squares that frame one, the largest first, whatever tells how well a square does.

The middle of the photo comes first. Then large squares are looked at before small ones, on a coarse grid. From the best of each size a square walks to where it frames
best, in ever smaller steps; there it must convince. The search ends at half the size of the largest subject: smaller
ones are in the background.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .crop import Square, around, grid, middle_square

Care = Literal["glance", "look", "check"]
"""How closely squares are looked at: on the grid, on the way, and where a subject may be."""

# Sides of squares as shares of the photo's shorter side; smaller subjects hold too few pixels to learn from.
SIZES = (1.0, 0.71, 0.5, 0.36)
STEP = 0.25  # of the grid, as a share of a square's side
MOST = 500  # squares of one size; a panorama would have thousands of small ones
STARTS = 3  # squares of each size from which a walk begins
WORTH = 0.35  # of the best score so far on any grid: below it, no walk begins
WALK = (0.16, 0.08, 0.04)  # steps, as shares of a square's side
LONGEST_WALK = 3  # moves of each step
SAME_PLACE = 0.5  # of the smaller square: that much lies in the other where both show one subject
SMALLER = 0.5  # of the largest subject's side: who is smaller is in the background


@dataclass(frozen=True)
class Sight:
    """What was seen in a square.

    Attributes:
        score: how well it frames a subject; compares squares of one photo.
        convinces: whether a subject is there; told by a "check" only.
    """

    score: float
    convinces: bool = False


Look = Callable[[Sequence[Square], Care], Sequence[Sight]]


@dataclass(frozen=True)
class Subject:
    """A subject in a photo: the square that frames it, and how well."""

    square: Square
    score: float


def search(size: tuple[int, int], smallest: int, look: Look) -> list[Subject]:
    """The subjects of a photo, from left to right; none where nothing convinces.

    Args:
        size: (height, width) of the photo in pixels.
        smallest: side in pixels below which nothing is looked for.
        look: tells what is in squares.
    """
    middle = middle_square(size)
    sight = look([middle], "check")[0]
    # A portrait in the middle is taken as it is, without a walk to what may be framed a little better.
    found = [Subject(middle, sight.score)] if sight.convinces else []
    known: dict[Square, float] = {}
    checked = {middle}
    best = 0.0
    for share in SIZES:
        side = round(share * min(size))
        largest = max((subject.square.side for subject in found), default=0)
        if side < max(smallest, SMALLER * largest):
            break
        squares = grid(size, side, STEP)
        if len(squares) > MOST:
            break
        free = [square for square in squares if not _taken(square, found)]
        scores = [sight.score for sight in look(free, "glance")] if free else []
        best = max([best, *scores])
        worth = [(score, square) for score, square in zip(scores, free, strict=True) if score > WORTH * best]
        starts = _apart(square for _, square in sorted(worth, key=lambda one: (-one[0], one[1])))
        ends = dict.fromkeys(_walk(size, start, smallest, look, known) for start in starts)
        new = [end for end in ends if end not in checked and not _taken(end, found)]
        checked.update(new)
        sure = [one for one in zip(new, look(new, "check") if new else (), strict=True) if one[1].convinces]
        for square, sight in sorted(sure, key=lambda one: -one[1].score):
            if not _taken(square, found):
                found.append(Subject(square, sight.score))
    largest = max((subject.square.side for subject in found), default=0)
    kept = [subject for subject in found if subject.square.side >= SMALLER * largest]
    return sorted(kept, key=lambda subject: subject.square.middle[::-1])


def chosen(subjects: Sequence[Subject], which: int) -> Subject | None:
    """The subject with a number, from 1 and from left to right; 0: the largest, and of equals the better framed.

    None where there is no such number.
    """
    if which > 0:
        return subjects[which - 1] if which <= len(subjects) else None
    return max(subjects, key=lambda subject: (subject.square.side, subject.score), default=None)


def _taken(square: Square, found: Iterable[Subject]) -> bool:
    return any(square.same_place(subject.square) > SAME_PLACE for subject in found)


def _apart(ranked: Iterable[Square]) -> list[Square]:
    """The first squares that do not show the same place."""
    picked: list[Square] = []
    for square in ranked:
        if len(picked) < STARTS and all(square.overlap(other) < SAME_PLACE / 2 for other in picked):
            picked.append(square)
    return picked


def _walk(size: tuple[int, int], here: Square, smallest: int, look: Look, known: dict[Square, float]) -> Square:
    """From a square to the best one near it; ``known`` are scores of squares that were looked at."""

    def best_of(squares: Sequence[Square]) -> Square:
        new = [square for square in squares if square not in known]
        known.update(zip(new, (sight.score for sight in look(new, "look")), strict=True) if new else ())
        return max(squares, key=lambda square: known[square])

    for step in WALK:
        for _ in range(LONGEST_WALK):
            near = best_of([here, *(one for one in around(size, here, step) if one.side >= smallest)])
            if near == here:
                break
            here = near
    return here
