"""Which part of each photo is learned: what a mask, a box or the domain says, and what the person is told about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ....e4t_core.crop import Square, square_around
from ....e4t_core.subject_search import Subject, chosen, framed, is_portrait
from .boxes import boxes_of
from .drawn_square import square_of
from .photos import Photo, PhotoError, Photos, named, note, usual_square

AUTO, SUBJECT, MIDDLE, BOX = "auto", "subject", "middle", "box"
CROPS = (AUTO, SUBJECT, MIDDLE, BOX)
"""What the crop follows where there is no mask: the subject, but in photos that are not square only; the subject; nothing; or exactly
the box that is wired in."""

CRAMPED = (
    "There is too little memory to look for the subject{where}, so the middle of the photo is learned: draw the crop, or paint a"
    " mask."
)
UNUSED = "The mask decides the crop, so the square that was drawn is not used{where}."

# Of the side that is learned from: a smaller crop has to be enlarged so far that little is left to see.
TINY = 0.5

Find = Callable[[Photo], Sequence[Subject] | None]
"""The subjects of a photo, from left to right; none at all where there was too little memory to look for them."""


@dataclass(frozen=True, eq=False)
class CropChoice:
    """What a person chose.

    Attributes:
        follows: one of ``CROPS``.
        which: number of the subject, from 1 and from left to right; 0: the largest.
        boxes: what is wired in as BOUNDING_BOX, or none.
        square: drawn on the photo, as ``drawn_square`` reads it; empty: none.
    """

    follows: str = AUTO
    which: int = 0
    boxes: Any = None
    square: str = ""


@dataclass(frozen=True)
class Candidates:
    """The squares of one photo's subjects, from left to right, and the number of the chosen one, from 0."""

    squares: tuple[Square, ...]
    number: int


@dataclass(frozen=True, eq=False)
class Crops:
    """What is learned of each photo.

    Attributes:
        squares: one for each photo.
        candidates: of photos with several subjects, by the photo's number from 0.
        notes: what the person should know, a sentence or two each.
    """

    squares: tuple[Square, ...]
    candidates: dict[int, Candidates]
    notes: tuple[str, ...] = ()


def choose(
    photos: Photos,
    choice: CropChoice,
    margin: float,
    size: int,
    word: str,
    find: Find | None,
    looks_by_itself: bool = True,
) -> Crops:
    """The square of each photo. A mask decides; then what was drawn; then a box; then what is found; else it is the middle.

    With "auto" nothing is looked for in a square photo, which somebody has cropped, unless a subject is asked for by its number.

    Args:
        photos: whole.
        choice: the person's.
        margin: room on each side of a mask or box, as a share of its longer side.
        size: side in pixels that is learned from.
        word: what subjects are called.
        find: finds them; none where nothing can.
        looks_by_itself: whether "auto" looks for the subject; for a style, which is everywhere, it should not.

    Raises:
        PhotoError: there is no subject with that number, no box where one is asked for, or boxes or a square that cannot
            be used.
    """
    count = len(photos.photos)
    sizes = [photo.size for photo in photos.photos]
    drawn = square_of(choice.square, sizes)
    boxes = boxes_of(choice.boxes, sizes) if drawn is None else None
    if choice.follows == BOX and boxes is None and drawn is None:
        raise PhotoError(f"The crop is to be a box, but none is wired in: wire in boxes, or set crop to {SUBJECT!r}.")
    squares: list[Square] = []
    candidates: dict[int, Candidates] = {}
    missed: list[int] = []
    cramped: list[int] = []
    tiny: list[int] = []
    masked = [index for index, photo in enumerate(photos.photos) if photo.mask is not None]
    for index, photo in enumerate(photos.photos):
        own, which = usual_square(photo, margin), choice.which
        if photo.mask is None and drawn is not None:
            subjects, which = [Subject(drawn, 0.0)], 0
        elif photo.mask is None and boxes is not None:
            room = 0.0 if choice.follows == BOX else margin
            subjects = [Subject(square_around(photo.size, box, room), 0.0) for box in boxes[index]]
        elif photo.mask is None and find is not None and _looks(photo, choice, looks_by_itself):
            found = find(photo)
            if found is None:
                cramped.append(index)
                squares.append(own)
                continue
            subjects = list(found)
        else:
            squares.append(own)
            continue
        best = chosen(subjects, which)
        if best is None and which > 0:
            raise PhotoError(_no_such(which, len(subjects), word, named(index, count)))
        if best is None:
            missed.append(index)
            squares.append(own)
            continue
        # A person or a box says exactly where; what was found is good to some pixels.
        squares.append(framed(photo.size, best) if drawn is None and boxes is None else best.square)
        if len(subjects) > 1:
            candidates[index] = Candidates(tuple(one.square for one in subjects), subjects.index(best))
        if squares[-1].side < TINY * size:
            tiny.append(index)
    notes = [
        note(UNUSED, masked, count) if drawn is not None else "",
        _said_of(candidates, count, choice.which),
        note(
            "No {word} was found{where}, so the middle of the photo is learned: paint a mask to choose.",
            missed,
            count,
            word=repr(word),
        ),
        note(CRAMPED, cramped, count),
        note(_tiny(squares, tiny, size), tiny, count) if tiny else "",
    ]
    return Crops(tuple(squares), candidates, tuple(filter(None, notes)))


def _looks(photo: Photo, choice: CropChoice, by_itself: bool) -> bool:
    """Whether the subject of a photo is looked for."""
    if choice.follows == AUTO:
        return choice.which > 0 or (by_itself and not is_portrait(photo.size))
    return choice.follows == SUBJECT


def _said_of(candidates: dict[int, Candidates], count: int, which: int) -> str:
    parts = []
    for index, found in candidates.items():
        where = "" if count == 1 else f" in photo {index + 1}"
        parts.append(
            f"{len(found.squares)} subjects were found{where}; number {found.number + 1} from the left is learned"
        )
    if not parts:
        return ""
    told = "; ".join(parts)
    return f"{told}." if which else f"{told}, the largest. Set 'which' to learn another."


def _tiny(squares: Sequence[Square], tiny: Sequence[int], size: int) -> str:
    sides = ", ".join(str(squares[index].side) for index in tiny)
    return (
        f"The subject is small: its crop is only {sides} pixels wide{{where}}, and {size} are learned. A closer photo, or a"
        " larger scan, gives more of a likeness."
    )


def _no_such(which: int, there: int, word: str, name: str) -> str:
    found = (
        "no subject was found"
        if there == 0
        else "1 subject was found"
        if there == 1
        else f"{there} subjects were found"
    )
    return (
        f"which = {which} asks for subject {which} from the left, but {found} ({word!r}) in {name}: set which to"
        f" {'0' if there == 0 else f'0 to {there}'}, or paint a mask."
    )
