import itertools
import random

import pytest
import torch

from e4t_core.crop import Square, about_corners, around, grid, middle_square, square_around, square_at, within

SIZES = [(100, 100), (384, 512), (512, 384), (9, 400), (8, 8), (101, 67)]


def inside(square: Square, size: tuple[int, int]) -> bool:
    top, left, side = square.top, square.left, square.side
    return side > 0 and top >= 0 and left >= 0 and top + side <= size[0] and left + side <= size[1]


def pixels(square: Square) -> set[tuple[int, int]]:
    rows, columns = square.window()
    return {(y, x) for y in range(rows.start, rows.stop) for x in range(columns.start, columns.stop)}


def boxes(size: tuple[int, int], count: int = 50) -> list[tuple[int, int, int, int]]:
    rng = random.Random(0)
    found = []
    for _ in range(count):
        top, left = rng.randrange(size[0]), rng.randrange(size[1])
        found.append((top, left, rng.randint(top + 1, size[0]), rng.randint(left + 1, size[1])))
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("margin", [0.0, 0.25, 3.0])
def test_a_square_around_a_box_lies_in_the_photo_and_holds_what_of_the_box_it_can(size, margin) -> None:
    for box in boxes(size):
        square = square_around(size, box, margin)
        assert inside(square, size)
        top, left, bottom, right = box
        if max(bottom - top, right - left) <= min(size):
            assert square.top <= top and square.left <= left
            assert square.top + square.side >= bottom and square.left + square.side >= right


@pytest.mark.parametrize("size", SIZES)
def test_more_margin_never_makes_a_smaller_square(size) -> None:
    for box in boxes(size):
        squares = [square_around(size, box, margin) for margin in (0.0, 0.1, 0.25, 0.5, 1.0, 5.0)]
        sides = [square.side for square in squares]
        assert sides == sorted(sides) and sides[-1] <= min(size)
        for small, large in itertools.pairwise(squares):
            # One pixel: sides are whole, so that middles are half a pixel apart.
            assert small.top >= large.top - 1 and small.left >= large.left - 1


def test_the_middle_square_is_the_largest_there_is() -> None:
    assert middle_square((100, 200)) == Square(0, 50, 100)
    assert middle_square((201, 100)) == Square(50, 0, 100)
    assert middle_square((64, 64)) == Square(0, 0, 64)


def test_overlaps_are_those_of_sets_of_pixels() -> None:
    rng = random.Random(1)
    for _ in range(100):
        one, other = (Square(rng.randrange(12), rng.randrange(12), rng.randint(1, 9)) for _ in range(2))
        both, either = pixels(one) & pixels(other), pixels(one) | pixels(other)
        assert one.common(other) == len(both) and one.overlap(other) == len(both) / len(either)
        assert one.same_place(other) == len(both) / min(len(pixels(one)), len(pixels(other)))
        assert one.overlap(one) == 1 and one.overlap(other) == other.overlap(one)


def test_a_square_cuts_out_its_own_pixels() -> None:
    photo = torch.arange(80).reshape(8, 10)
    rows, columns = Square(2, 3, 4).window()
    assert photo[rows, columns].tolist() == [[y * 10 + x for x in range(3, 7)] for y in range(2, 6)]


@pytest.mark.parametrize("size", SIZES)
def test_a_square_at_a_place_stays_in_the_photo_wherever_that_is(size) -> None:
    rng = random.Random(2)
    for _ in range(50):
        middle = rng.uniform(-50, size[0] + 50), rng.uniform(-50, size[1] + 50)
        assert inside(square_at(size, middle, rng.uniform(0.1, 2) * min(size)), size)
    assert square_at((100, 100), (50, 40), 20) == Square(40, 30, 20)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_grid_covers_the_photo_in_steps_and_has_the_middle(size, share) -> None:
    side = max(1, round(share * min(size)))
    squares = grid(size, side, 0.25)
    assert all(inside(square, size) and square.side == side for square in squares)
    assert Square((size[0] - side) // 2, (size[1] - side) // 2, side) in squares
    for at, length in (("top", size[0]), ("left", size[1])):
        starts = sorted({getattr(square, at) for square in squares})
        assert starts[0] == 0 and starts[-1] == length - side
        assert all(b - a <= max(1, 0.25 * side) + 1 for a, b in itertools.pairwise(starts))
    with pytest.raises(ValueError, match="do not fit"):
        grid(size, min(size) + 1, 0.25)


@pytest.mark.parametrize("size", SIZES)
def test_neighbors_lie_in_the_photo_and_are_others(size) -> None:
    for square in [*grid(size, min(size), 0.5), *grid(size, max(1, min(size) // 2), 0.5)]:
        for near, most in ((around(size, square, 0.14), 6), (about_corners(size, square, 0.14), 8)):
            assert square not in near and len(set(near)) == len(near) <= most
            assert all(inside(one, size) for one in near)


def test_a_frame_that_is_too_large_becomes_smaller_without_leaving_its_corner() -> None:
    near = about_corners((384, 512), Square(80, 200, 114), 0.14)
    corners = [(80, 200), (80, 214), (94, 200), (94, 214)]
    assert all(Square(top, left, 100) in near for top, left in corners)


def test_smaller_squares_lie_in_the_square_in_its_middle_at_its_sides_and_in_its_corners() -> None:
    square = Square(10, 20, 100)
    inner = within(square, (0.8, 0.5))
    assert {one.side for one in inner} == {80, 50} and len(inner) == 18
    assert all(square.common(one) == one.side**2 for one in inner)
    assert {(10, 20), (30, 40), (20, 30), (10, 30)} <= {(one.top, one.left) for one in inner if one.side == 80}
    assert within(square, (1.0,)) == []
    assert len(within(Square(0, 0, 9), (0.99, 0.9, 0.1))) == 4, "none is too small, and none comes twice"
