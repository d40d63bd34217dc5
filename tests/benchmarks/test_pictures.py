"""Pictures of the quality benchmark are drawn once and kept."""

from __future__ import annotations

import pytest
import torch

from benchmarks import host
from benchmarks.arms import Drawer
from benchmarks.pictures import Drawing, Painter, picture_folder

RENDERED = Drawing("validation", "face", 3, ("other", "render"), 2, {})


def test_what_was_drawn_is_kept_and_the_rest_is_missing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "ROOT", tmp_path)
    painter = Painter(RENDERED)
    assert painter.missing() == [0, 1, 2]
    drawn = painter.pictures(1)
    assert painter.missing() == [0, 2]
    assert {arm: tuple(pictures.shape) for arm, pictures in drawn.items()} == {
        arm: (22, 3, 128, 128) for arm in RENDERED.arms
    }
    assert not torch.equal(drawn["other"], drawn["render"])
    monkeypatch.setattr(Drawer, "draw", lambda *_: pytest.fail("drawn a second time"))
    again = painter.pictures(1)
    assert all(torch.equal(again[arm], drawn[arm]) for arm in RENDERED.arms)


def test_another_setting_is_another_picture(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "ROOT", tmp_path)
    assert picture_folder("validation", "e4t", {}) != picture_folder("validation", "e4t", {"steps": 3})
    assert picture_folder("validation", "e4t", {}) != picture_folder("held-out", "e4t", {})
    assert picture_folder("validation", "render", {}) == picture_folder("validation", "render", {"steps": 3})
