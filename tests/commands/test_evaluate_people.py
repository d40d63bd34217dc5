"""Who is evaluated: chosen by seed from a folder in the layout of Labeled Faces in the Wild, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands.evaluate.faults import EvaluationError
from commands.evaluate.people import Choice, choose_people, copy_concepts


def make(folder: Path, counts: dict[str, int]) -> Path:
    """Photos of noise, no two alike."""
    for person, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng([person, number]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}_{number + 1:04}.png")
    return folder


COUNTS = {"Ann": 1, "Ben": 2, "Cid": 3, "Dee": 5, "Eve": 10, "Fay": 11, "Gus": 4, "Hal": 3}


def test_people_with_three_to_ten_photos_are_chosen_and_one_photo_of_each_is_learned(tmp_path: Path) -> None:
    people, fitting = choose_people(make(tmp_path, COUNTS), Choice(count=5))
    assert fitting == 5
    assert [person.number for person in people] == [1, 2, 3, 4, 5]
    assert {person.concept.path.parent.name for person in people} == {"Cid", "Dee", "Eve", "Gus", "Hal"}
    for person in people:
        name = person.concept.path.parent.name
        assert len({photo.path for photo in person.photos}) == COUNTS[name]
        assert person.concept not in person.references


def test_fewer_people_are_the_first_of_more_and_another_seed_chooses_others(tmp_path: Path) -> None:
    folder = make(tmp_path, COUNTS | {f"Person {number}": 4 for number in range(20)})
    more, fewer = (choose_people(folder, Choice(count=count))[0] for count in (25, 4))
    assert more[:4] == fewer
    other = choose_people(folder, Choice(count=4, seed=1))[0]
    assert [p.concept.path for p in other] != [p.concept.path for p in fewer]
    # Photos are chosen by the seed, too: not always the first one.
    assert len({person.concept.path.stem[-1] for person in more}) > 1


def test_copies_of_learned_photos_have_numbers_for_names(tmp_path: Path) -> None:
    people, _ = choose_people(make(tmp_path / "people", COUNTS), Choice(count=2))
    learned = copy_concepts(people, tmp_path / "out")
    assert [photo.path.name for photo in learned] == ["0001.png", "0002.png"]
    assert [photo.digest for photo in learned] == [person.concept.digest for person in people]
    assert learned[0].path.read_bytes() == people[0].concept.path.read_bytes()


@pytest.mark.parametrize(
    ("counts", "choice", "said"),
    [
        ({}, {}, "holds no folder with photos in it: lay them out as FOLDER/NAME/NAME_0001.jpg"),
        (COUNTS, {}, "5 of them with 3 to 10 photos (people have 1 to 11): take --people 5"),
        (
            {"Ann": 1, "Ben": 2},
            {"count": 2},
            "0 of them with 3 to 10 photos (people have 1 to 2): correct --least and --most",
        ),
    ],
)
def test_too_few_people_are_said_in_one_sentence(
    tmp_path: Path, counts: dict[str, int], choice: dict[str, int], said: str
) -> None:
    with pytest.raises(EvaluationError) as raised:
        choose_people(make(tmp_path, counts), Choice(**choice))
    assert said in str(raised.value)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="was not found in"):
        choose_people(tmp_path / "no", Choice())


@pytest.mark.parametrize("choice", [{"least": 1}, {"least": 5, "most": 4}, {"count": 1}])
def test_a_choice_that_nothing_can_be_measured_with_is_said(choice: dict[str, int]) -> None:
    with pytest.raises(EvaluationError, match="2 or more"):
        Choice(**choice)


def test_the_same_photo_twice_is_said_because_it_would_judge_itself(tmp_path: Path) -> None:
    folder = make(tmp_path, {"Ann": 3, "Ben": 3})
    (folder / "Ben" / "Ben_0009.png").write_bytes((folder / "Ann" / "Ann_0001.png").read_bytes())
    with pytest.raises(EvaluationError, match="is the same as"):
        choose_people(folder, Choice(count=2))


def test_a_photo_that_does_not_open_is_said(tmp_path: Path) -> None:
    folder = make(tmp_path, {"Ann": 3, "Ben": 3})
    for path in (folder / "Ann").iterdir():
        path.write_bytes(b"no picture" + path.name.encode())
    people, _ = choose_people(folder, Choice(count=2))
    broken = next(person for person in people if person.concept.path.parent.name == "Ann")
    with pytest.raises(EvaluationError, match="cannot be opened as a picture: save it again, or take it out"):
        broken.concept.picture()
