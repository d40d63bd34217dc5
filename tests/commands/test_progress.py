"""Progress in a log file is whole lines, now and then; in a terminal it is tqdm's bar."""

import io

import pytest

from commands import progress
from commands.progress import Progress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_a_line_for_every_interval_and_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    file = io.StringIO()
    with Progress(total=3, desc="pre-training", file=file) as bar:
        bar.update()
        bar.set_postfix({"loss": "0.1000"})
        bar.clear()
        bar.update(2)
    lines = file.getvalue().splitlines()
    assert lines[-1].startswith("pre-training: 3 of 3 in 00:00") and lines[-1].endswith("loss=0.1000")
    assert any(line.startswith("pre-training: 1 of 3") for line in lines)
    assert "\r" not in file.getvalue() and "\x1b" not in file.getvalue()


def test_short_work_leaves_no_line_in_a_file() -> None:
    file = io.StringIO()
    assert list(Progress(range(50), desc="photos", file=file)) == list(range(50))
    assert file.getvalue() == ""


def test_the_next_line_waits_for_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    file = io.StringIO()
    bar = Progress(total=9, desc="photos", file=file)
    for now in (130.0, 161.0, 162.0, 219.0, 222.0):
        bar.update()
    assert [line.split(" in ")[0] for line in file.getvalue().splitlines()] == ["photos: 2 of 9", "photos: 5 of 9"]


def test_a_terminal_gets_the_bar() -> None:
    terminal = _Terminal()
    assert list(Progress(range(3), desc="photos", file=terminal)) == [0, 1, 2]
    assert "\r" in terminal.getvalue() and "100%" in terminal.getvalue()
