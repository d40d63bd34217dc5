"""Captions say what the picture shows, and nothing of what only a photo can tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from miniworld.attributes import DOMAINS, Scene, celebrities, random_identity, random_scene
from miniworld.captions import EMPTY_SHARE, compose, describe, scene_phrases, subject_phrases, vocabulary
from miniworld.text_encoder import tokenize


def test_what_a_caption_tells_is_true_and_stands_in_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        identity, scene = random_identity(rng, "face" if rng.random() < 0.7 else "cat", "train"), random_scene(rng)
        caption = describe(identity, scene, rng)
        if not caption.text:
            continue
        assert all(identity.value(attribute) == value for attribute, value in caption.named)
        for edit in ("style", "accessory", "background", "zoom"):
            told = getattr(caption, edit)
            assert told is None or told == scene.value(edit)
        if caption.background:
            assert f"{caption.background} background" in caption.text
        else:
            assert "background" not in caption.text
        if caption.accessory not in (None, "none"):
            assert caption.accessory in caption.text


def test_geometry_and_marks_change_no_caption() -> None:
    identity = random_identity(np.random.default_rng(1), "face", "validation")
    other = replace(identity, geometry=tuple(1 - g for g in identity.geometry), marks=(0, 0, 0, 0, 0))
    scene = Scene()
    for seed in range(20):
        first = describe(identity, scene, np.random.default_rng(seed))
        assert first == describe(other, scene, np.random.default_rng(seed))


def test_strangers_get_no_name_and_celebrities_mostly_theirs() -> None:
    rng = np.random.default_rng(2)
    name, known = next(iter(celebrities("face").items()))
    found = [describe(known, Scene(), rng) for _ in range(200)]
    named = [caption for caption in found if caption.name]
    assert {caption.name for caption in named} == {name}
    assert all(name in caption.text for caption in named)
    assert len(named) / 200 == pytest.approx(0.9 * (1 - EMPTY_SHARE), abs=0.09)  # three standard deviations
    stranger = random_identity(rng, "face", "held-out")
    assert all(describe(stranger, Scene(), rng).name is None for _ in range(50))


def test_one_caption_in_ten_is_empty() -> None:
    rng = np.random.default_rng(3)
    identity = random_identity(rng, "cat", "train")
    empty = sum(not describe(identity, Scene(), rng).text for _ in range(1000))
    assert empty / 1000 == pytest.approx(EMPTY_SHARE, abs=0.03)


def test_the_oracle_says_every_named_attribute() -> None:
    identity = random_identity(np.random.default_rng(4), "face")
    assert len(subject_phrases(identity)) == len(DOMAINS["face"].named)


def test_grammar() -> None:
    scene = Scene(style=2, accessory=3, background=4, zoom=1)
    text = compose(scene.style, "emma", scene_phrases(scene))
    assert text == "a pixel art of emma, wearing headphones, blue background, closeup"
    assert scene_phrases(Scene(), background=False) == []


def test_words_that_stand_in_the_slot_are_single_tokens() -> None:
    for spec in DOMAINS.values():
        for word in (spec.word, *spec.synonyms, *spec.names):
            assert len(tokenize(word)) == 1, word


def test_the_vocabulary_holds_every_word_of_a_caption() -> None:
    known = {token for text in vocabulary() for token in tokenize(text)} | set(tokenize(","))
    rng = np.random.default_rng(5)
    for _ in range(200):
        caption = describe(random_identity(rng, "face", "train"), random_scene(rng), rng)
        assert set(tokenize(caption.text)) <= known
