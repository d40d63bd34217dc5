"""Floors, ceilings, shares and their intervals, against sums that are written out here; and what is kept on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands.evaluate.intervals import mean, share
from commands.evaluate.likeness import bounds, calibrate, score
from commands.evaluate.networks.network import Embedded, cosine
from commands.evaluate.people import Person, Photo
from commands.evaluate.prompt_classes import Prompt, Row, groups, read_classes
from commands.evaluate.rows import Drawn, scored
from commands.evaluate.seen import Look, Seen
from commands.evaluate.tables import ALL, adherence, figures
from e4t_core.files.file_errors import FileError

VECTORS = {
    "a0": (1.0, 0.1, 0.0),
    "a1": (1.0, 0.3, 0.1),
    "a2": (0.9, -0.2, 0.3),
    "b0": (0.1, 1.0, 0.2),
    "b1": (0.2, 1.0, -0.1),
    "b2": None,
    "c0": None,
    "c1": (0.0, 0.1, 1.0),
    "c2": (0.3, 0.1, 1.0),
    "like a": (0.8, 0.4, 0.1),
    "like b": (0.4, 0.8, 0.1),
    "like c": (0.2, 0.1, 0.7),
    "no face": None,
}


class Table:
    """A network that reads its answer off a list: the color of a picture's first pixel is the number in it."""

    name, fingerprint = "table", "1"

    def __init__(self) -> None:
        self.asked = 0

    def embed(self, pictures: Sequence[Image.Image]) -> Embedded:
        self.asked += len(pictures)
        given = [list(VECTORS.values())[picture.getpixel((0, 0))[0]] for picture in pictures]  # type: ignore[index]
        found = np.array([vector is not None for vector in given])
        return Embedded(np.array([vector or (0, 0, 0) for vector in given], np.float32), found)

    def similarity(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return cosine(left, right)


def look(name: str) -> Look:
    number = list(VECTORS).index(name)
    return Look(name, lambda: Image.new("RGB", (2, 2), (number, 0, 0)))


def person(number: int, letter: str) -> Person:
    photos = [Photo(Path(f"{letter}{i}"), f"{letter}{i}") for i in range(3)]
    return Person(number, photos[0], tuple(photos[1:]))


PEOPLE = [person(1, "a"), person(2, "b"), person(3, "c")]


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    made = Seen(Table(), tmp_path)
    made.look([look(name) for name in VECTORS], "all")
    return made


def similar(left: str, right: str) -> float:
    a, b = (np.array(VECTORS[name]) for name in (left, right))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_floor_and_ceiling_are_what_strangers_and_the_learned_photo_would_score(seen: Seen) -> None:
    made = bounds(seen, PEOPLE)
    assert made[1].ceiling == pytest.approx((similar("a0", "a1") + similar("a0", "a2")) / 2)
    # The third person's learned photo has no face, so one stranger is left; the second's other photo does not judge.
    assert made[1].floor == pytest.approx((similar("b0", "a1") + similar("b0", "a2")) / 2)
    assert made[2].ceiling == pytest.approx(similar("b0", "b1"))
    assert made[2].floor == pytest.approx(similar("a0", "b1"))
    strangers = [similar(x, c) for x in ("a0", "b0") for c in ("c1", "c2")]
    assert made[3].floor == made[3].ceiling == pytest.approx(sum(strangers) / 4)


def test_a_picture_scores_its_mean_over_the_others_photos_and_the_floor_without_a_face(seen: Seen) -> None:
    made = bounds(seen, PEOPLE)[1]
    right = score(seen, made, "like a")
    assert right.identity == pytest.approx((similar("like a", "a1") + similar("like a", "a2")) / 2)
    assert right.to_photo == pytest.approx(similar("like a", "a0"))
    wrong = score(seen, made, "no face")
    assert (wrong.found, wrong.identity, wrong.to_photo) == (False, made.floor, None)
    assert score(seen, bounds(seen, PEOPLE)[3], "like c").to_photo is None


def test_a_person_whose_other_photos_have_no_face_is_left_out(seen: Seen) -> None:
    faceless = Person(4, Photo(Path("a0"), "a0"), (Photo(Path("b2"), "b2"), Photo(Path("c0"), "c0")))
    assert set(bounds(seen, [PEOPLE[1], PEOPLE[2], faceless])) == {2, 3}


def test_real_photos_are_calibrated_by_all_pairs(seen: Seen) -> None:
    known = calibrate(seen, PEOPLE)
    assert known is not None
    assert (known.photos, known.faceless) == (9, 2)
    pairs = [("a0", "a1"), ("a0", "a2"), ("a1", "a2"), ("b0", "b1"), ("c1", "c2")]
    assert known.same.pairs == 5
    assert known.same.mean == pytest.approx(np.mean([similar(*pair) for pair in pairs]))
    assert (known.other.pairs, known.other.mean) == (1, pytest.approx(similar("a0", "b0")))
    assert known.told_apart == 1.0


def drawn(number: int, digest: str, group: str) -> Drawn:
    return Drawn(number, Prompt(Row(1, "S*"), group, ""), "x.png", None, digest)


def test_people_count_alike_and_faceless_pictures_are_counted_at_the_floor(seen: Seen) -> None:
    made = bounds(seen, PEOPLE)
    pictures = [
        *(drawn(1, "like a", "plain"), drawn(1, "no face", "style"), drawn(1, "no face", "style")),
        *(drawn(2, "like b", "plain"), Drawn(2, pictures_prompt("style"), None, "out of memory", "")),
    ]
    rows = scored(pictures, [(seen, made)])
    everything, plain, style = figures(rows, "table", made)
    assert [everything.group, plain.group, style.group] == [ALL, "plain", "style"]
    assert (everything.pictures, everything.faceless) == (4, 2)
    one = (score(seen, made[1], "like a").identity + 2 * made[1].floor) / 3
    two = score(seen, made[2], "like b").identity
    assert everything.identity.value == pytest.approx((one + two) / 2)
    floor, ceiling = ((getattr(made[1], at) + getattr(made[2], at)) / 2 for at in ("floor", "ceiling"))
    assert everything.share.value == pytest.approx(((one + two) / 2 - floor) / (ceiling - floor))
    # Only the first person has a picture of this class, and none of a face.
    assert (style.pictures, style.share.value, style.floor) == (2, pytest.approx(0), pytest.approx(made[1].floor))


def test_clip_compares_with_the_own_prompt_and_with_those_of_other_classes(seen: Seen) -> None:
    made = bounds(seen, PEOPLE)
    texts = {name: np.float32(np.eye(3)[axis]) for axis, name in enumerate(("in oil", "in ink", "outside"))}
    asked = [("in oil", "style"), ("in ink", "style"), ("outside", "background"), ("in oil", "style")]
    pictures = [Drawn(1, Prompt(Row(1, "S*"), group, text), "x.png", None, "like a") for text, group in asked]
    oil, ink, outside, _ = scored(pictures, [], (seen, made), texts)
    vector = VECTORS["like a"]
    assert vector is not None
    assert (oil.prompt, ink.prompt, outside.prompt) == pytest.approx(vector)
    assert (oil.other_prompts, ink.other_prompts) == pytest.approx((vector[2], vector[2]))
    # Each text once, however many pictures were asked for by it.
    assert outside.other_prompts == pytest.approx((vector[0] + vector[1]) / 2)
    told = adherence([oil, ink, outside], made)
    assert [row.group for row in told] == [ALL, "style", "background"]
    assert told[1].prompt.value == pytest.approx((vector[0] + vector[1]) / 2)
    assert told[0].likeness.identity.value == pytest.approx(score(seen, made[1], "like a").identity)


def pictures_prompt(group: str) -> Prompt:
    return Prompt(Row(2, "S* drawn"), group, "")


def test_intervals_hold_the_value_and_shrink_with_more_people() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    few, many = mean(list(values[:20])), mean(list(values))
    assert few.low < few.value < few.high
    # The mean's standard error, twice on either side.
    assert many.high - many.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert few.high - few.low > 2 * (many.high - many.low)
    constant = share([0.5, 0.5], [0.0, 0.0], [1.0, 1.0])
    assert (constant.low, constant.value, constant.high) == (0.5, 0.5, 0.5)


def test_nothing_is_looked_at_twice_whatever_ended_the_first_look(tmp_path: Path) -> None:
    first = Seen(Table(), tmp_path)
    first.look([look("a0"), look("no face"), look("a0")], "photos")
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + b'{"picture": "b0", "embed')
    network = Table()
    second = Seen(network, tmp_path)
    second.look([look("a0"), look("no face"), look("b0")], "photos")
    assert network.asked == 1
    third = Seen(Table(), tmp_path)
    assert third.vectors(["a0", "no face", "b0"]).tolist() == np.float32([VECTORS["a0"], VECTORS["b0"]]).tolist()
    assert not third.found("no face")


def test_another_network_under_the_same_name_looks_again(tmp_path: Path) -> None:
    Seen(Table(), tmp_path).look([look("a0")], "photos")
    network = Table()
    network.fingerprint = "2"  # type: ignore[misc]
    Seen(network, tmp_path).look([look("a0")], "photos")
    assert network.asked == 1


def test_shipped_prompts_have_the_papers_classes_and_a_place_for_the_person() -> None:
    from commands.evaluate.prompt_classes import SHIPPED

    prompts = read_classes(SHIPPED, "anna", "person", 2)
    assert groups(prompts) == ["plain", "full body", "style", "accessory", "background"]
    assert all("anna" in prompt.row.prompt and "anna" not in prompt.plain for prompt in prompts)
    assert len(prompts) == 2 * len({prompt.row.prompt for prompt in prompts})
    assert {prompt.row.seed for prompt in prompts} == {1, 2}
    assert prompts[0].plain == "a photo of person"


def test_a_table_of_ones_own_keeps_its_seeds_and_its_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("class,prompt,seed,KSampler.cfg\nstyle,S* in oil,7,2.5\n,a photo of {},,\n", encoding="utf-8")
    first, second = read_classes(path, "S*", "", 1)
    assert (first.group, first.row.seed, first.row.inputs, first.plain) == (
        "style",
        7,
        (("KSampler.cfg", "2.5"),),
        "in oil",
    )
    assert (second.group, second.row.seed, second.row.prompt, second.plain) == ("all", 1, "a photo of S*", "a photo of")


def test_a_prompt_without_the_person_is_said(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a photo of S*\na cat\n", encoding="utf-8")
    with pytest.raises(FileError, match=r"has a prompt without the trigger S\* in line 2: write S\* or"):
        read_classes(path, "S*", "person", 1)
