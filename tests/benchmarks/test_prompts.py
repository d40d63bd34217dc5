"""The benchmarks' prompts ask for what the concept photo does not show, and their words say what they ask."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.arms import distance, subjects
from benchmarks.base_captions import base_captions, name_captions
from benchmarks.prompts import prompts, seed_of
from benchmarks.report import gate, table
from benchmarks.score import scene_of
from miniworld.attributes import ACCESSORIES, BACKGROUNDS, Scene, celebrities, identities_of
from miniworld.concept_photos import subject_masks
from miniworld.heldout import concept_photo, held_out
from miniworld.renderer import render

PHOTOS = [Scene(background=b, accessory=a) for b in range(len(BACKGROUNDS)) for a in range(len(ACCESSORIES))]


@pytest.mark.parametrize("number", range(4))
def test_eleven_prompts_never_ask_for_what_the_photo_shows(number: int) -> None:
    for photo in PHOTOS:
        asked = prompts(photo, number)
        assert len(asked) == len({p.text for p in asked}) == 11
        classes = [p.asked for p in asked]
        assert classes[0] == () and asked[0].text == "a photo of {}"
        assert [c.count("style") for c in classes].count(1) == 3  # two styles and a compound
        assert classes.count(("background",)) == 3 and classes.count(("accessory",)) == 2
        assert classes.count(("zoom",)) == 1 and sum(len(c) > 1 for c in classes) == 2
        for prompt in asked:
            assert prompt.scene.background != photo.background
            assert prompt.scene.accessory == 0 or prompt.scene.accessory != photo.accessory


def test_the_words_of_a_prompt_say_what_it_asks() -> None:
    for number, photo in enumerate(PHOTOS):
        for prompt in prompts(photo, number):
            scene, asked = scene_of(prompt.text.format("S*"))
            assert set(asked) - {"style"} == set(prompt.asked) - {"style"}
            assert scene.style == prompt.scene.style
            for edit in prompt.asked:
                assert getattr(scene, edit) == getattr(prompt.scene, edit)


def test_a_prompt_of_another_world_is_an_error() -> None:
    with pytest.raises(ValueError, match="names none of the styles"):
        scene_of("an oil painting of S*")


def test_no_two_pictures_share_their_noise() -> None:
    seeds = {seed_of(number, prompt, draw) for number in range(64) for prompt in range(11) for draw in range(2)}
    assert len(seeds) == 64 * 11 * 2


def test_the_base_gates_captions_are_the_committed_ones() -> None:
    asked = base_captions()
    assert len(asked) == 512
    assert {a.identity.split() for a in asked} == {"validation"}
    assert base_captions(8) == asked[:8]
    names = {name for domain in ("face", "cat") for name in celebrities(domain)}
    assert not any(names & set(a.text.replace(",", "").split()) for a in asked)


def test_name_captions_say_nothing_but_the_name() -> None:
    asked = name_captions(3)
    assert [a.text for a in asked] == [f"a photo of {name}" for name in list(celebrities("face"))[:3]]
    assert all(a.identity.split() == "train" for a in asked)


def test_the_mask_holds_the_person_and_neither_corners_nor_accessory() -> None:
    identity = held_out()[0]
    scene = replace(concept_photo(identity)[0], accessory=ACCESSORIES.index("hat"))
    mask, bare = (
        subject_masks([identity], [s], render([identity], [s]))[0, 0] for s in (scene, replace(scene, accessory=0))
    )
    assert mask[64, 64] == 1 and mask[2, 2] == 0 and mask[2, -3] == 0
    assert 0.1 < mask.mean() < bare.mean() - 0.02


def test_distance_is_zero_only_for_the_same_individual() -> None:
    first, *others = identities_of("face", "validation", 10)
    assert distance(first, first) == 0
    assert min(distance(first, other) for other in others) > 0.2


def test_every_subject_is_paired_with_another_one() -> None:
    people = held_out(count=5)
    found = subjects([(p, *concept_photo(p), ()) for p in people])
    assert all(s.other != s.identity for s in found)
    assert sorted(s.other.order() for s in found) == sorted(p.order() for p in people)


def test_a_gate_says_met_or_not(capsys: pytest.CaptureFixture[str]) -> None:
    nan = float("nan")
    met = [
        gate("x", 0.9, least=0.9),
        gate("x", 0.89, least=0.9),
        gate("x", nan, least=0.9),
        gate("x", 0.15, most=0.15),
        gate("x", 0.151, most=0.15),
        gate("x", nan, most=0.15),
        gate("x", 1e-9, above=0),
        gate("x", 0.0, above=0),
        gate("x", nan, above=0),
    ]
    assert met == [True, False, False, True, False, False, True, False, False]
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("met") for line in lines] == met
    assert lines[3] == "met      x: 0.150 (at most 0.15)"
    assert table(["a", "b"], [["one", 2]]).splitlines() == ["a    b", "------", "one  2"]
