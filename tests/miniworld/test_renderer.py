"""The renderer draws the same picture every time, and what is visible is what moves pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from miniworld.attributes import ACCESSORIES, FACE, Identity, Scene, random_identity, random_scene
from miniworld.renderer import render
from miniworld.visibility import attributes, changed, true_value, visible


def face(**values: str) -> Identity:
    """A plain face with some named attributes set; pale, black short hair, no glasses, no beard, no marks."""
    plain = {"skin": "pale", "hair colour": "black", "hair style": "short", "eye colour": "blue", "glasses": "none"}
    plain |= {"beard": "none"} | {key.replace("_", " "): value for key, value in values.items()}
    named = tuple(FACE.named[name].index(plain[name]) for name in FACE.named)
    return Identity("face", named, (0.5,) * len(FACE.geometry), (0,) * len(FACE.marks))


def is_visible(identity: Identity, scene: Scene, attribute: str) -> bool:
    return bool(visible([identity], [scene], [attribute])[0, 0])


def test_a_picture_does_not_depend_on_when_or_with_whom_it_is_drawn() -> None:
    rng = np.random.default_rng(0)
    people = [random_identity(rng, domain) for domain in ("face", "cat", "face")]
    scenes = [random_scene(rng) for _ in people]
    together = render(people, scenes)
    assert torch.equal(together, render(people, scenes))
    for row in range(3):
        # Vectorised arithmetic may round differently in another batch size.
        assert torch.allclose(together[row], render([people[row]], [scenes[row]])[0], atol=1e-5)
    assert together.min() >= 0 and together.max() <= 1


def test_a_bald_face_without_beard_shows_no_hair_color() -> None:
    assert is_visible(face(), Scene(), "face hair colour")
    assert not is_visible(face(hair_style="bald"), Scene(), "face hair colour")
    assert is_visible(face(hair_style="bald", beard="beard"), Scene(), "face hair colour")


def test_a_hat_hides_a_mark_on_the_hair_only_where_it_covers_it() -> None:
    streaked = replace(face(), marks=(0, 0, 0, 0, 2))
    assert is_visible(streaked, Scene(), "face mark hair")
    assert not is_visible(streaked, Scene(accessory=ACCESSORIES.index("hat")), "face mark hair")


@pytest.mark.parametrize("zoom", [0, 1, 2])
@pytest.mark.parametrize("style", [0, 1, 2, 3])
def test_edits_and_skin_are_visible_in_every_style_and_zoom(style: int, zoom: int) -> None:
    asked = ["style", "background", "accessory", "zoom", "face skin", "face eye colour"]
    seen = visible([face(skin="brown")], [Scene(style=style, zoom=zoom)], asked)[0]
    assert seen.all(), dict(zip(asked, seen.tolist(), strict=True))


@pytest.mark.parametrize("domain", ["face", "cat"])
def test_changing_an_attribute_changes_that_one_only(domain: str) -> None:
    rng = np.random.default_rng(3)
    identity, scene = random_identity(rng, domain), random_scene(rng)
    names = attributes(domain)
    for name in names:
        other = changed(identity, scene, name)
        differing = [n for n in names if true_value(*other, n) != true_value(identity, scene, n)]
        assert differing == [name]


def test_an_attribute_of_the_other_domain_is_an_error() -> None:
    with pytest.raises(KeyError):
        true_value(face(), Scene(), "cat fur")
