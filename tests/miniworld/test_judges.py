"""The judges' shapes, truth, losses and gate arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from miniworld.attributes import DOMAINS, EDITS, Scene, random_identity
from miniworld.dataset import shifted
from miniworld.judge import ARCHITECTURES, IDENTITY_WIDTH, Judge, Place, centered, measures, questions
from miniworld.judge_gate import LIMITS, area_under_curve, classified, is_small, met
from miniworld.models import read
from miniworld.renderer import render
from miniworld.train_judges import IGNORED, PairLoss, mirrored, reading_loss, truth


@pytest.mark.parametrize("architecture", ["convolutional", "attentive"])
def test_a_judge_answers_every_question(architecture: str) -> None:
    torch.manual_seed(0)
    judge = Judge(architecture)
    reading = judge.read(torch.rand(3, 3, 128, 128), batch=2)
    assert {q: tuple(v.shape) for q, v in reading.logits.items()} == {q: (3, n) for q, n in questions().items()}
    assert list(reading.measures) == measures() and reading.measures["face jaw"].shape == (3,)
    assert reading.identity.shape == (3, IDENTITY_WIDTH)
    assert torch.allclose(reading.identity.norm(dim=1), torch.ones(3), atol=1e-5)
    assert not reading.identity.requires_grad


def test_the_questions_are_those_of_both_domains() -> None:
    expected = {"domain", *EDITS}
    for domain in DOMAINS:
        expected |= set(classified(domain))
    assert set(questions()) == expected
    assert {name for name in questions() if is_small(name)} == {
        name for name in questions() if "eye colour" in name or " mark " in name
    }


def test_truth_leaves_the_other_domains_questions_out() -> None:
    cat = random_identity(np.random.default_rng(0), "cat")
    answers, numbers = truth(cat, Scene(style=2, background=5))
    by_name = dict(zip(questions(), answers.tolist(), strict=True))
    assert by_name["domain"] == list(DOMAINS).index("cat")
    assert by_name["style"] == 2 and by_name["background"] == 5
    assert by_name["cat fur"] == cat.named[0]
    assert all(by_name[q] == IGNORED for q in questions() if q.startswith("face "))
    assert np.isnan(numbers).tolist() == [m.startswith("face ") for m in measures()]


def test_both_domains_alone_give_a_finite_loss() -> None:
    torch.manual_seed(0)
    judge = Judge("convolutional")
    for domain in DOMAINS:
        contents = [(random_identity(np.random.default_rng(1), domain), Scene())] * 2
        value, parts = reading_loss(judge(torch.rand(2, 3, 128, 128)), contents)
        assert torch.isfinite(value) and 0 <= parts["right"] <= 1


def test_the_pair_loss_prefers_twins_told_apart() -> None:
    loss = PairLoss()
    a, b, c, d = torch.eye(IDENTITY_WIDTH)[:4]
    apart = torch.stack([a, b, a, b, c, d, c, d])
    mixed = torch.stack([a, a, a, a, c, c, c, c])
    told = torch.tensor([True, True])
    assert loss(apart, told) < loss(mixed, told)
    # Twins that cannot be told apart in these scenes ask for nothing.
    assert loss(mixed, torch.tensor([False, False])) < loss(mixed, told)


def test_area_under_the_curve() -> None:
    assert area_under_curve(torch.tensor([0.9, 0.8]), torch.tensor([0.1, 0.2])) == 1.0
    assert area_under_curve(torch.tensor([0.9, 0.1]), torch.tensor([0.5])) == 0.5
    assert area_under_curve(torch.tensor([0.3]), torch.tensor([0.3])) == 0.5


def test_a_gate_is_met_only_if_each_of_its_figures_is() -> None:
    figures = {**LIMITS, "drawn face eye colour": 0.5}  # the last one is listed apart
    assert met(figures)
    for name in LIMITS:
        assert not met(figures | {name: LIMITS[name] - 0.001})


def test_the_shipped_judges_met_the_gate_under_the_names_of_today() -> None:
    for name in ARCHITECTURES:
        assert met(json.loads(read(name)[1]["gate"]))


def test_shifting_moves_pictures_and_continues_their_border() -> None:
    pictures = torch.zeros(2, 3, 32, 32)
    pictures[:, :, 16, 16], pictures[:, 0] = 1.0, 0.5
    moved = shifted(pictures, torch.tensor([[5, -3], [0, 2]]))
    assert moved.shape == pictures.shape and (moved[:, 0] == 0.5).all()
    assert (moved[:, 1] == 1).nonzero().tolist() == [[0, 13, 21], [1, 18, 16]]


def test_a_subject_is_centered_wherever_it_stands() -> None:
    rng = np.random.default_rng(4)
    people = [random_identity(rng, "face") for _ in range(6)]
    scenes = [Scene(background=b, zoom=b % 3, shift=(b - 3.0, 2.0 - b)) for b in range(6)]
    plain = render(people, [replace(scene, zoom=0, shift=(0.0, 0.0)) for scene in scenes])
    drawn, place = render(people, scenes), Place.of(scenes)
    middle = slice(40, 100)
    off = (centered(drawn, place) - plain)[..., middle, middle].abs().mean((1, 2, 3))
    assert (off < 0.05).all()  # a small picture enlarged is blurred
    assert ((drawn - plain)[..., middle, middle].abs().mean((1, 2, 3)) > off + 0.02).all()
    moves = torch.tensor([[4, -2]] * 6)
    moved = centered(shifted(drawn, moves), Place(place.scale, place.shift + moves))
    assert ((moved - plain)[..., middle, middle].abs().mean((1, 2, 3)) < 0.05).all()


@pytest.mark.parametrize("domain", list(DOMAINS))
def test_in_the_mirror_left_and_right_marks_change_places(domain: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        identity = random_identity(rng, domain)
        other = mirrored(identity)
        assert mirrored(other) == identity and other.named == identity.named
        before, after = (dict(zip(i.spec.marks, i.marks, strict=True)) for i in (identity, other))
        assert after["left cheek"] == before["right cheek"] and after["forehead"] == before["forehead"]
