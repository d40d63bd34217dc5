"""Where in a photo the subjects are: squares that frame one, whatever tells how well a square does.

The middle of the photo comes first. Then large squares are looked at before small ones, on a coarse grid. From the best of
each size, apart from each other, squares walk to where they frame best, first by looks, then, where a check hints at a subject, by
checks. A walk may end in a frame that is too large, because scores are nearly level there: so squares inside it are tried, too, and of
two that frame about as well the smaller one is taken. Where the best square convinces, nothing more is looked for in its place. The
search ends at a share of the size of the largest subject: smaller ones are in the background.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .crop import Square, about_corners, around, grid, middle_square, within

Care = Literal["look", "check", "confirm"]
"""How closely squares are looked at: on the way, where a subject may be, and where it is framed best."""

# Sides of squares as shares of the photo's shorter side; smaller subjects hold too few pixels to learn from.
SIZES = (1.0, 0.71, 0.5, 0.36, 0.25)
STEP = 0.25  # of the grid, as a share of a square's side
MOST = 500  # squares of one size; a panorama would have thousands of small ones
STARTS = 4  # squares of each size from which a walk begins
WORTH = 0.13  # score below which no walk begins
WALK = (0.14, 0.07)  # steps, as shares of a square's side
CLOSER = (0.08, 0.04)  # the same, by closer looks
LONGEST_WALK = 5  # moves of each step
INNER = (0.87, 0.76, 0.66)  # sides of squares inside a frame that may be too large, as shares of its side
INNER_CHECKED = 3  # of them: those that look best
TIGHT = 0.15  # of a score, that a frame of half the side may be worse: scores fall slowly as a frame grows, and fast as it shrinks
SAME_PLACE = 0.5  # of the smaller square: that much lies in the other where both show one subject
SMALLER = 0.4  # of the largest subject's side: who is smaller is in the background
FAINT = 0.4  # of the best score: who is seen so much worse is not there
PORTRAIT = 1.1  # longer by shorter side up to which a photo may be a portrait as it is
CENTERED = 0.65  # overlap of a portrait's middle square with what was found from which on it stays as it came in
AS_LARGE = 0.83  # of the largest square's side: found sides are good to about that much


@dataclass(frozen=True)
class Sight:
    """What was seen in a square.

    Attributes:
        score: how well it frames a subject; compares squares of one photo.
        hints: whether a square close by may frame a subject; told by a "check" and a "confirm".
        convinces: whether this one does, as far as a "check" can tell; a "confirm" tells things apart.
    """

    score: float
    hints: bool = False
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
    known: dict[Square, float] = {}
    checks: dict[Square, Sight] = {}
    found: list[Square] = []

    def take(squares: Iterable[Square], least: int) -> None:
        new = [square for square in squares if square not in checks and not _taken(square, found)]
        _check(new, look, checks)
        if is_portrait(size) and middle in new and checks[middle].convinces:
            # It stays as it came in, without a walk to what may be framed a little better.
            found.append(middle)
            return
        hinted = [square for square in new if checks[square].hints]
        ends = [end for end in _closer(size, hinted, least, look, checks) if checks[end].convinces]
        if ends:
            ends = _tighter(size, ends, least, look, known, checks)
            found.extend(end for end, sight in zip(ends, look(ends, "confirm"), strict=True) if sight.convinces)

    take([middle], smallest)
    for share in SIZES:
        side = round(share * min(size))
        least = max(smallest, round(SMALLER * max((square.side for square in found), default=0)))
        if side < least:
            break
        squares = grid(size, side, STEP)
        if len(squares) > MOST:
            break
        free = [square for square in squares if not _taken(square, found)]
        _know(free, look, known)
        worth = sorted((square for square in free if known[square] > WORTH), key=lambda one: (-known[one], one))
        take(
            _walk(size, _apart(worth), least, WALK, lambda near: _know(near, look, known), known.__getitem__),
            least,
        )
    # In one place the best is taken.
    best: list[Subject] = []
    for square in sorted(found, key=lambda one: (-_frames(one, checks[one])[1], one)):
        if not _taken(square, [other.square for other in best]):
            best.append(Subject(square, checks[square].score))
    clearest = max((subject.score for subject in best), default=0.0)
    clear = [subject for subject in best if subject.score >= FAINT * clearest]
    largest = max((subject.square.side for subject in clear), default=0)
    kept = [subject for subject in clear if subject.square.side >= SMALLER * largest]
    return sorted(kept, key=lambda subject: subject.square.middle[::-1])


def is_portrait(size: tuple[int, int]) -> bool:
    """Whether a photo of (height, width) pixels may be a portrait as it came in: one that is about square."""
    return max(size) <= PORTRAIT * min(size)


def chosen(subjects: Sequence[Subject], which: int) -> Subject | None:
    """The subject with a number, from 1 and from left to right; 0: the largest, and of those about as large the best framed.

    None where there is no such number.
    """
    if which > 0:
        return subjects[which - 1] if which <= len(subjects) else None
    largest = max((subject.square.side for subject in subjects), default=0)
    as_large = [subject for subject in subjects if subject.square.side >= AS_LARGE * largest]
    return max(as_large, key=lambda subject: (subject.score, subject.square.side), default=None)


def framed(size: tuple[int, int], subject: Subject) -> Square:
    """The square that is learned of a subject: its own, but all of a portrait that shows it nearly as it is."""
    middle = middle_square(size)
    return middle if is_portrait(size) and subject.square.overlap(middle) >= CENTERED else subject.square


def _taken(square: Square, others: Iterable[Square]) -> bool:
    return any(square.same_place(other) > SAME_PLACE for other in others)


def _apart(ranked: Iterable[Square]) -> list[Square]:
    """The first squares that do not show the same place."""
    picked: list[Square] = []
    for square in ranked:
        if len(picked) < STARTS and all(square.overlap(other) < SAME_PLACE / 2 for other in picked):
            picked.append(square)
    return picked


def _know(squares: Iterable[Square], look: Look, known: dict[Square, float]) -> None:
    """Looks at those squares whose score is not known."""
    new = [square for square in dict.fromkeys(squares) if square not in known]
    known.update(zip(new, (sight.score for sight in look(new, "look")), strict=True) if new else ())


def _check(squares: Iterable[Square], look: Look, checks: dict[Square, Sight]) -> None:
    """Checks those squares that were not checked."""
    new = [square for square in dict.fromkeys(squares) if square not in checks]
    checks.update(zip(new, look(new, "check"), strict=True) if new else ())


def _walk(
    size: tuple[int, int],
    starts: Sequence[Square],
    smallest: int,
    steps: Sequence[float],
    know: Callable[[Iterable[Square]], None],
    score: Callable[[Square], float | tuple[bool, float]],
) -> list[Square]:
    """From each square to the best one near it, all at the same time, so that few looks are needed; each end once."""
    ends = list(starts)
    for step in steps:
        moving = set(range(len(ends)))
        for _ in range(LONGEST_WALK):
            # Corners are tried only where nothing else is better: there are many of them.
            stuck = moving
            for neighbors in (around, about_corners):
                near = {
                    at: [one for one in neighbors(size, ends[at], step) if one.side >= smallest] for at in sorted(stuck)
                }
                know(one for squares in near.values() for one in squares)
                better = {at: max([ends[at], *squares], key=score) for at, squares in near.items()}
                stuck = {at for at, best in better.items() if best == ends[at]}
                for at, best in better.items():
                    ends[at] = best
                if not stuck:
                    break
            moving -= stuck
            if not moving:
                break
    return list(dict.fromkeys(ends))


def _closer(
    size: tuple[int, int], squares: Sequence[Square], smallest: int, look: Look, checks: dict[Square, Sight]
) -> list[Square]:
    """From each square to the best one near it, by checks, all at the same time; all were checked."""

    def frames(square: Square) -> tuple[bool, float]:
        return _frames(square, checks[square])

    return _walk(size, squares, smallest, CLOSER, lambda near: _check(near, look, checks), frames)


def _frames(square: Square, sight: Sight) -> tuple[bool, float]:
    """How well a square frames what a check saw in it, to be compared with others of the same place."""
    return sight.convinces, sight.score - TIGHT * math.log2(square.side)


def _tighter(
    size: tuple[int, int],
    ends: Sequence[Square],
    smallest: int,
    look: Look,
    known: dict[Square, float],
    checks: dict[Square, Sight],
) -> list[Square]:
    """In place of each frame one inside it, where that is better.

    Scores are nearly level about a frame that is much too large, so that walks end there; they rise close to the subject only.
    """
    inside = {end: [one for one in within(end, INNER) if one.side >= smallest] for end in ends}
    _know((one for squares in inside.values() for one in squares), look, known)
    best = {end: sorted(squares, key=lambda one: (-known[one], one))[:INNER_CHECKED] for end, squares in inside.items()}
    _check((one for squares in best.values() for one in squares), look, checks)
    starts = [max([end, *best[end]], key=lambda one: _frames(one, checks[one])) for end in ends]
    return _closer(size, starts, smallest, look, checks)
