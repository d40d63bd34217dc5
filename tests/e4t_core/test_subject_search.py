"""The search, with a look whose subjects are known: how much of a square's place is a subject's own square."""

import dataclasses
from collections.abc import Sequence

import pytest

from e4t_core.crop import Square
from e4t_core.subject_search import MOST, Care, Sight, Subject, chosen, search


class Scene:
    """Subjects, each in a square; counts what was looked at."""

    def __init__(self, size: tuple[int, int], *subjects: Square) -> None:
        self.size, self.subjects = size, subjects
        self.seen: list[tuple[Square, Care]] = []

    def __call__(self, squares: Sequence[Square], care: Care) -> list[Sight]:
        assert squares, "nothing to look at"
        for square in squares:
            assert 0 <= square.top <= self.size[0] - square.side and 0 <= square.left <= self.size[1] - square.side
        self.seen += [(square, care) for square in squares]
        overlaps = [max((square.overlap(one) for one in self.subjects), default=0.0) for square in squares]
        return [
            Sight(overlap, care != "look" and overlap > 0.4, care != "look" and overlap > 0.7) for overlap in overlaps
        ]

    def found(self, smallest: int = 32) -> list[Square]:
        return [subject.square for subject in search(self.size, smallest, self)]


SIZE = (384, 512)


@pytest.mark.parametrize(
    "subject",
    [Square(0, 64, 384), Square(0, 128, 384), Square(90, 10, 250), Square(234, 362, 150), Square(0, 0, 200)],
)
def test_one_subject_is_framed_wherever_it_is_and_however_large(subject: Square) -> None:
    (found,) = Scene(SIZE, subject).found()
    assert found.overlap(subject) > 0.7


def test_several_are_found_from_left_to_right() -> None:
    left, middle, right = Square(200, 10, 150), Square(20, 180, 180), Square(180, 370, 140)
    found = Scene(SIZE, middle, right, left).found()
    assert len(found) == 3
    assert all(one.overlap(true) > 0.7 for one, true in zip(found, (left, middle, right), strict=True))


def test_who_is_much_smaller_is_in_the_background() -> None:
    large, small = Square(20, 20, 340), Square(20, 400, 100)
    scene = Scene(SIZE, large, small)
    (found,) = scene.found()
    assert found.overlap(large) > 0.7
    assert min(square.side for square, _ in scene.seen) >= 0.38 * found.side, "it was looked for all the same"


def test_what_is_seen_much_worse_than_another_is_no_subject() -> None:
    person, thing = Square(20, 20, 200), Square(150, 300, 190)
    scene = Scene(SIZE, person, thing)

    def look(squares: Sequence[Square], care: Care) -> list[Sight]:
        dim = [0.3 if square.overlap(thing) > square.overlap(person) else 1.0 for square in squares]
        return [
            dataclasses.replace(sight, score=part * sight.score)
            for part, sight in zip(dim, scene(squares, care), strict=True)
        ]

    (found,) = search(SIZE, 32, look)
    assert found.square.overlap(person) > 0.7


def test_a_row_of_people_of_different_size_is_found_whole() -> None:
    row = [Square(30 + 20 * number, 12 + 125 * number, side) for number, side in enumerate((110, 90, 120, 100))]
    found = Scene(SIZE, *row).found()
    assert len(found) == 4 and all(one.overlap(true) > 0.7 for one, true in zip(found, row, strict=True))


def test_those_who_stand_close_together_are_looked_at_in_few_calls() -> None:
    calls: list[int] = []
    scene = Scene(SIZE, Square(100, 30, 170), Square(60, 280, 200), Square(220, 200, 120))

    def look(squares: Sequence[Square], care: Care) -> list[Sight]:
        calls.append(len(squares))
        return scene(squares, care)

    assert len(search(SIZE, 32, look)) == 3
    # Squares pass a look together, so that calls cost more than squares.
    assert len(calls) < 90 and sum(calls) < 1500


def test_a_thing_that_only_a_closer_look_tells_apart_is_no_subject() -> None:
    person, thing = Square(20, 20, 200), Square(150, 300, 190)
    scene = Scene(SIZE, person, thing)

    def look(squares: Sequence[Square], care: Care) -> list[Sight]:
        apart = [care == "confirm" and square.overlap(thing) > 0.5 for square in squares]
        return [
            dataclasses.replace(sight, convinces=sight.convinces and not told)
            for told, sight in zip(apart, scene(squares, care), strict=True)
        ]

    (found,) = search(SIZE, 32, look)
    assert found.square.overlap(person) > 0.7


def test_nothing_that_convinces_is_nobody() -> None:
    assert Scene(SIZE).found() == []


def test_the_middle_does_where_nobody_stands_better_and_only_there() -> None:
    """A square in the middle that convinces says nothing of who stands a little beside it."""
    beside, known = Square(30, 150, 330), Square(0, 64, 384)
    assert known.overlap(beside) > 0.5
    (found,) = Scene(SIZE, beside).found()
    assert found.overlap(beside) > 0.9 and found != known


@pytest.mark.parametrize("subject", [Square(55, 114, 188), Square(100, 250, 160), Square(70, 60, 210)])
def test_a_frame_that_is_too_large_is_left_for_a_tight_one_that_no_walk_reaches(subject: Square) -> None:
    """Scores are level about the frame that is half as large again, and rise close to the subject only."""
    loose = Square(
        *(max(0, round(edge - subject.side / 4)) for edge in (subject.top, subject.left)), 3 * subject.side // 2
    )

    def look(squares: Sequence[Square], care: Care) -> list[Sight]:
        scores = [max(0.5 * square.overlap(loose), square.overlap(subject) ** 3) for square in squares]
        return [Sight(score, hints=score > 0.2, convinces=score > 0.35) for score in scores]

    (found,) = search(SIZE, 32, look)
    assert found.square.overlap(subject) > 0.9


@pytest.mark.parametrize("subject", [Square(0, 0, 128), Square(6, 10, 112)])
def test_a_subject_that_fills_a_square_photo_is_all_of_it_and_ends_the_search(subject: Square) -> None:
    scene = Scene((128, 128), subject)
    assert scene.found() == [Square(0, 0, 128)] and scene.seen == [(Square(0, 0, 128), "check")]


def test_the_same_photo_gives_the_same_subjects_by_the_same_looks() -> None:
    first, second = (Scene(SIZE, Square(100, 30, 170), Square(60, 280, 200)) for _ in range(2))
    assert first.found() == second.found() and first.seen == second.seen


def test_nothing_smaller_than_the_smallest_is_looked_at() -> None:
    scene = Scene(SIZE, Square(200, 200, 140))
    scene.found(smallest=200)
    assert min(square.side for square, _ in scene.seen) >= 200


def test_a_panorama_is_not_looked_at_for_hours() -> None:
    scene = Scene((100, 10_000), Square(0, 5000, 100))
    (found,) = scene.found()
    assert found.overlap(Square(0, 5000, 100)) > 0.7
    assert len(scene.seen) < 2 * MOST + 200


def test_the_largest_is_chosen_by_itself_and_others_by_number() -> None:
    subjects = [Subject(Square(0, 0, 50), 3.0), Subject(Square(0, 60, 80), 1.0), Subject(Square(0, 150, 80), 2.0)]
    assert chosen(subjects, 0) == subjects[2], "of two as large, the better framed"
    assert [chosen(subjects, which) for which in (1, 2, 3, 4)] == [*subjects, None]
    assert chosen([], 0) is None and chosen([], 1) is None
    loose, framed = Subject(Square(0, 0, 220), 0.29), Subject(Square(0, 300, 190), 0.37)
    assert chosen([loose, framed], 0) == framed, "about as large, and framed better"
    assert chosen([loose, Subject(Square(0, 300, 170), 0.37)], 0) == loose
