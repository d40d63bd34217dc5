"""What a node that learns sends to the panel in the browser, and what it leaves in the history."""

from __future__ import annotations

import dataclasses
import json

import comfy.model_management
import pytest
import torch
from e4t_pack.nodes.host import live_view
from e4t_pack.nodes.host.learning import panel, previews, progress
from e4t_pack.nodes.host.learning.panel import POINTS, LearningPanel, thinned
from e4t_pack.nodes.host.learning.previews import Previews
from e4t_pack.nodes.host.sampling.patched_model import held_concepts
from personalized import draw
from world import LOOKING, QUICK, photo

from e4t_core.run import StepReport


@pytest.fixture
def sent(monkeypatch):
    """Every message, as JSON says it, as if a browser followed the job; none is left out for its time."""
    told = []
    monkeypatch.setattr(live_view, "is_watched", lambda: True)
    monkeypatch.setattr(live_view, "send", lambda kind, content: told.append(json.loads(json.dumps(content))))
    monkeypatch.setattr(panel, "PATIENCE", 0.0)
    return told


def test_the_panel_is_told_every_step_and_the_end(run, sent):
    concept = run(settings=dataclasses.replace(LOOKING, steps=3))[2]
    assert [message["state"] for message in sent] == ["learning"] * (len(sent) - 1) + ["learned"]
    assert sent[0]["picture"].startswith("data:image/jpeg;base64,") and sent[0]["losses"] == []
    steps = [message["step"] for message in sent]
    assert steps == sorted(steps) and {1, 2, 3} <= set(steps)
    assert all(message["steps"] == 3 for message in sent if message["step"])
    last = sent[-1]
    assert last["losses"] == [float(f"{loss:.4g}") for loss in concept.losses] and last["done"] == last["total"]
    assert last["concept"] == concept.fingerprint and last["seconds"] > 0 and last["seconds_left"] is None
    assert any(message["seconds_left"] for message in sent[:-1])
    assert last["memory"].startswith("fast plan") and f"Memory: {last['memory']}." in last["lines"]


def test_a_picture_is_sent_when_it_changes_and_now_and_then(run, sent, monkeypatch):
    # However slow the machine is.
    monkeypatch.setattr(panel, "REMINDER", float("inf"))
    run(settings=dataclasses.replace(LOOKING, steps=3))
    pictures = [message["picture"] for message in sent if "picture" in message]
    # The crop, the crop with what is left out of it, and with the end.
    assert len(pictures) == 3 and pictures[0] != pictures[1] == pictures[2]
    sent.clear()
    monkeypatch.setattr(panel, "REMINDER", 0.0)
    run(settings=dataclasses.replace(LOOKING, steps=3), seed=2)
    assert all("picture" in message for message in sent), "a page that was loaded anew would wait for its picture"


def test_a_concept_learned_before_has_its_picture_and_curve(run, sent):
    settings = dataclasses.replace(LOOKING, steps=3)
    run(settings=settings)
    first = sent[-1]
    sent.clear()
    run(settings=settings)
    last = sent[-1]
    assert last["state"] == "known" and (last["losses"], last["step"]) == (first["losses"], 3)
    assert [message["picture"] for message in sent if "picture" in message][-1] == first["picture"]


def test_nothing_is_sent_where_nobody_watches(run, monkeypatch):
    monkeypatch.setattr(live_view, "send", lambda *_: pytest.fail("something was sent"))
    monkeypatch.setattr(panel, "jpeg_uri", lambda *_: pytest.fail("a picture was made for nobody"))
    run()


def test_watched_or_not_the_same_is_learned(run, base, sent):
    watched = run(settings=QUICK)[2]
    assert sent
    from e4t_pack.nodes.host.learning.result_store import STORE

    STORE.clear()
    sent.clear()
    with pytest.MonkeyPatch.context() as alone:
        alone.setattr(live_view, "is_watched", lambda: False)
        unwatched = run(settings=QUICK)[2]
    assert not sent and run.tunings == 2
    assert watched.fingerprint == unwatched.fingerprint and watched.losses == unwatched.losses


def test_numbers_that_change_sooner_than_a_person_sees_are_left_out(monkeypatch):
    told, now = [], [0.0]
    monkeypatch.setattr(live_view, "is_watched", lambda: True)
    monkeypatch.setattr(live_view, "send", lambda _, content: told.append(content["step"]))
    monkeypatch.setattr(panel.time, "monotonic", lambda: now[0])
    shown = LearningPanel("S*")
    for step in range(1, 101):
        shown.step, now[0] = step, step * 0.01
        shown.send(None)
    assert told[0] == 1 and 5 <= len(told) <= 6
    shown.state = panel.LEARNED
    shown.send(None)
    assert told[-1] == 100, "the end was left out"


def test_a_cancelled_and_a_failed_run_say_so(run, sent, monkeypatch):
    original = progress.Progress.step

    def cancel(self, report):
        comfy.model_management.interrupt_current_processing(report.step == 2)
        original(self, report)

    with monkeypatch.context() as cancelling:
        cancelling.setattr(progress.Progress, "step", cancel)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(settings=dataclasses.replace(LOOKING, steps=3))
    assert sent[-1]["state"] == "cancelled" and sent[-1]["lines"][0].startswith("S*: cancelled")
    with pytest.raises(ValueError, match="NaN"):
        run(image=photo() * float("nan"))
    assert sent[-1]["state"] == "failed" and "NaN" in sent[-1]["lines"][0]


def test_long_curves_are_thinned_and_say_nothing_that_json_cannot():
    assert thinned([1.0, float("nan"), 0.123456, float("inf")]) == [1.0, 0.1235]
    losses = [float(number) for number in range(10_000)]
    kept = thinned(losses)
    assert len(kept) == POINTS and kept[0] == 0 and kept[-1] == 9999 and kept == sorted(kept)
    assert thinned(losses[:POINTS]) == losses[:POINTS]
    assert thinned([]) == []


@pytest.mark.parametrize(
    ("every", "batch", "looked"),
    [(previews.AUTO, 1, [0]), (previews.NEVER, 1, [0]), (2, 1, [2, 4]), (previews.AUTO, 128, [2, 4])],
)
def test_previews_come_as_often_as_asked_and_are_pictures(every, batch, looked):
    """5.7 steps of one sample are worth a preview, so 191 of them may have one."""
    reports = [
        StepReport("tuning", step, 4, 1, 1, step, 4, (), draw=lambda: torch.zeros((1, 4, 8, 8))) for step in range(1, 5)
    ]
    colors = [[0.3, 0.2, 0.1]] * 4
    made = Previews(every, batch, colors, [0.1, 0.0, -0.1])
    assert [report.step for report in reports if made.due(report)] == [step for step in looked if step]
    picture = made.picture(reports[0])
    assert picture.size == (128, 128) and picture.getpixel((5, 5)) == (140, 128, 115)
    assert not Previews(1, batch, None).due(reports[0]), "a latent format without colors has no previews"


def test_previews_are_shown_and_one_that_fails_ends_no_run(run, sent, monkeypatch, caplog):
    from e4t_pack.nodes.host.learning.result_store import STORE

    monkeypatch.setattr(Previews, "due", lambda self, report: self.every != previews.NEVER and bool(report.draw))
    concept = run(settings=dataclasses.replace(LOOKING, steps=3))[2]
    seen = [message["preview"] for message in sent if message.get("preview")]
    assert len(set(seen)) == 3 and all(uri.startswith("data:image/jpeg;base64,") for uri in seen)
    assert sent[-1]["preview"] == seen[-1], "it vanished at the end"
    STORE.clear()
    monkeypatch.setattr(
        Previews, "_seen", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room for a preview"))
    )
    again = run(settings=dataclasses.replace(LOOKING, steps=3))[2]
    assert again.fingerprint == concept.fingerprint and run.tunings == 2
    assert caplog.text.count("no room for a preview") == 1, "it was tried again"


def test_after_sampling_the_browser_is_told_how_far_the_word_went(run, sent, monkeypatch):
    """The paper's figure 7, against the very words that were predicted."""
    model, clip, concept, _ = run()
    held = held_concepts(model)[0].concept
    predicted, original = [], type(held.predictor).word

    def word(self, features):
        predicted.append(original(self, features))
        return predicted[-1]

    monkeypatch.setattr(type(held.predictor), "word", word)
    sent.clear()
    draw(model, clip, "a photo of S*", steps=4)
    (message,) = sent
    (told,) = message["words"]
    assert (told["concept"], told["trigger"]) == (concept.fingerprint, "S*")
    expected = [float(f"{((e - held.start).norm() / held.start.norm()).item():.4g}") for e in predicted]
    assert [length for _, length in told["points"]] == pytest.approx(expected, rel=1e-3) and min(expected) > 0
    levels = [t for t, _ in told["points"]]
    assert len(levels) == 4 and levels == sorted(levels, reverse=True) and levels[0] > 900 and levels[-1] < 300
    # The next picture is told by itself; a picture without the word tells nothing.
    sent.clear()
    draw(model, clip, "a photo of S*", steps=2)
    draw(model, clip, "a cat", steps=2)
    assert [len(message["words"][0]["points"]) for message in sent] == [2]


def test_watching_a_word_changes_no_picture(run, sent, monkeypatch):
    model, clip, _, _ = run()
    watched = draw(model, clip, "a photo of S*", steps=3)
    monkeypatch.setattr(live_view, "is_watched", lambda: False)
    sent.clear()
    assert torch.equal(watched, draw(model, clip, "a photo of S*", steps=3)) and not sent
