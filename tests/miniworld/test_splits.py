"""Training, validation and held-out individuals never mix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from miniworld.attributes import CAT, DOMAINS, FACE, celebrities, identities_of, random_identity
from miniworld.dataset import chunk_contents
from miniworld.heldout import held_out
from miniworld.judge_pairs import draw_group, twin


@pytest.mark.parametrize("domain", list(DOMAINS))
def test_names_are_bound_to_training_identities_only(domain: str) -> None:
    known = celebrities(domain)
    assert tuple(known) == DOMAINS[domain].names
    assert {identity.split() for identity in known.values()} == {"train"}
    assert len(set(known.values())) == len(known)


def test_a_split_hangs_on_what_can_be_named_or_marked_not_on_geometry() -> None:
    identity = random_identity(np.random.default_rng(1), "face")
    moved = replace(identity, geometry=tuple(1 - g for g in identity.geometry))
    assert moved.split() == identity.split()


def test_splits_have_their_shares() -> None:
    rng = np.random.default_rng(0)
    splits = [random_identity(rng, "face").split() for _ in range(4000)]
    # Three standard deviations of a share of 6 % in 4000 draws are 1.1 %.
    for split, share in (("train", 0.90), ("validation", 0.04), ("held-out", 0.06)):
        assert splits.count(split) / 4000 == pytest.approx(share, abs=0.015)


def test_training_pictures_show_training_identities_only() -> None:
    assert {identity.split() for chunk in range(3) for identity, _ in chunk_contents(0, chunk)} == {"train"}


def test_the_benchmarks_individuals_are_held_out_and_in_the_order_of_their_hashes() -> None:
    people = held_out()
    assert len(people) == len(set(people)) == 64
    assert {p.split() for p in people} == {"held-out"}
    assert [p.order() for p in people] == sorted(p.order() for p in people)
    training = {i.canonical() for i in celebrities("face").values()}
    assert not training & {p.canonical() for p in people}


def test_identities_of_a_split_are_the_same_in_every_call() -> None:
    assert identities_of("cat", "validation", 5) == identities_of("cat", "validation", 5)


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_a_twin_is_of_the_same_split_and_differs_in_one_thing(split: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(40):
        identity = random_identity(rng, "face", split)
        other = twin(rng, identity)
        assert other.split() == split
        parts = [a != b for a, b in zip(identity.named, other.named, strict=True)]
        parts += [identity.geometry != other.geometry, identity.marks != other.marks]
        assert sum(parts) == 1


def test_a_group_shows_both_twins_in_both_scenes() -> None:
    people, scenes = draw_group(np.random.default_rng(0), "cat", "train")
    assert people[0] == people[2] and people[1] == people[3] and people[0] != people[1]
    assert scenes[0] == scenes[1] and scenes[2] == scenes[3]


def test_names_are_single_words_and_no_domain_word() -> None:
    for spec in (FACE, CAT):
        assert len(set(spec.names)) == len(spec.names)
        assert not set(spec.names) & {spec.word, *spec.synonyms}
