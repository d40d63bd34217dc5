"""The folder of results after any end: each job's line with its pictures, once, or nothing of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from commands.batch.jobs import Job
from commands.batch.photos import Photo
from commands.batch.prompts import Row
from commands.batch.report import ReportError
from commands.batch.results import Outcome, Picture, Results, ResultsError

JOBS = [
    Job(f"{number:02}" * 32, Photo(Path("anna.jpg"), "anna", "a" * 64), Row(number, f"S* {number}"), 7)
    for number in range(4)
]
TWO = Outcome([Picture(".png", b"one"), Picture(".png", b"two")], 1.23456)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "report.jsonl").read_text(encoding="utf-8").splitlines()]


def opened(folder: Path) -> Results:
    """As the next command opens it: what the one before held is free."""
    return Results(folder)


def test_a_line_says_what_was_drawn_from_what(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add(JOBS[0], TWO)
    results.add(JOBS[1], Outcome(error="No.", seconds=2.0))
    first, second, third = lines(tmp_path)
    assert first == {
        "concept": "anna",
        "prompt": "S* 0",
        "seed": 7,
        "seconds": 1.235,
        "error": None,
        "photo": "anna.jpg",
        "file": "anna/s-0_000000000000.png",
        "inputs": {},
        "job": JOBS[0].key,
        "attempt": 1,
        "picture": 1,
        "pictures": 2,
    }
    assert (tmp_path / first["file"]).read_bytes() == b"one"
    assert (tmp_path / second["file"]).read_bytes() == b"two"
    assert (third["file"], third["error"], third["pictures"]) == (None, "No.", 1)


ENDED_AT = """
import os, signal, sys
from pathlib import Path
from test_batch_results import JOBS, TWO, Results
results, name, count = Results(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
results.add(JOBS[0], TWO)
def ends(real):
    def done(*arguments, **options):
        global count
        count -= 1
        if count < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return done
setattr(os, name, ends(getattr(os, name)))
results.add(JOBS[1], TWO)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="ends it with a POSIX signal")
@pytest.mark.parametrize("place", [("fsync", 0), ("fsync", 1), ("fsync", 2), ("replace", 0), ("replace", 1)])
def test_a_command_killed_while_it_keeps_a_job_leaves_all_of_it_or_nothing(
    tmp_path: Path, place: tuple[str, int]
) -> None:
    name, count = place
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)]),
    }
    ended = subprocess.run(
        [sys.executable, "-c", ENDED_AT, str(tmp_path), name, str(count)], env=environment, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    results = Results(tmp_path)
    assert results.is_done(JOBS[0])
    # From the report's line on, the job is done.
    written = len(lines(tmp_path))
    assert written in (2, 4)
    assert results.is_done(JOBS[1]) == (written == 4)
    for said in lines(tmp_path):
        assert (tmp_path / said["file"]).read_bytes() == (b"one" if said["picture"] == 1 else b"two")
    assert len(list(tmp_path.glob("anna/*"))) == written
    assert not list((tmp_path / ".batch" / "pictures").iterdir())


def test_a_report_cut_anywhere_in_its_last_job_counts_without_it(tmp_path: Path) -> None:
    results = Results(tmp_path / "whole")
    for job in JOBS[:2]:
        results.add(job, TWO)
    results.close()
    text = (tmp_path / "whole" / "report.jsonl").read_bytes()
    before = len(b"\n".join(text.split(b"\n")[:2])) + 1
    for end in (before, before + 1, before + 40, len(text) - 120, len(text) - 1):
        cut = tmp_path / str(end)
        shutil.copytree(tmp_path / "whole", cut)
        os.truncate(cut / "report.jsonl", end)
        again = Results(cut)
        assert again.is_done(JOBS[0])
        assert not again.is_done(JOBS[1])
        again.add(JOBS[1], TWO)
        again.report.tidy(JOBS)
        assert (cut / "report.jsonl").read_bytes() == text
        again.close()


def test_failed_jobs_are_done_until_they_are_asked_for_and_count_their_attempts(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add(JOBS[0], Outcome(error="No."))
    assert results.is_done(JOBS[0])
    assert not results.is_done(JOBS[0], retry_failed=True)
    results.add(JOBS[0], TWO)
    results.close()
    again = opened(tmp_path)
    assert again.is_done(JOBS[0], retry_failed=True)
    assert again.report.attempts(JOBS[0].key) == 2
    assert [said["error"] for said in lines(tmp_path)] == ["No.", None, None]
    again.report.tidy(JOBS)
    assert [(said["error"], said["attempt"]) for said in lines(tmp_path)] == [(None, 2)] * 2


def test_a_tidied_report_is_in_the_order_of_the_jobs_and_keeps_others(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for job in (JOBS[3], JOBS[2], JOBS[0], JOBS[1]):
        results.add(job, Outcome(error="No."))
    results.report.tidy(JOBS[:3])
    assert [said["prompt"] for said in lines(tmp_path)] == ["S* 0", "S* 1", "S* 2", "S* 3"]


def test_a_picture_that_was_deleted_is_drawn_again(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for job in JOBS[:2]:
        results.add(job, TWO)
    results.close()
    (tmp_path / lines(tmp_path)[1]["file"]).unlink()
    again = opened(tmp_path)
    assert not again.is_done(JOBS[0])
    assert again.is_done(JOBS[1])


def test_a_folder_belongs_to_one_command_at_a_time(tmp_path: Path) -> None:
    first = Results(tmp_path)
    with pytest.raises(ResultsError, match="in use by another command"):
        Results(tmp_path)
    first.close()
    second = Results(tmp_path)
    assert second.batch == first.batch
    assert Results(tmp_path / "other").batch != first.batch


def test_a_folder_that_cannot_be_written_to_and_a_report_that_is_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot be written to"):
        Results(tmp_path / "file")
    (tmp_path / "report.jsonl").write_text('{"concept": "anna"}\n')
    with pytest.raises(ReportError, match="a line that no batch wrote, number 1"):
        Results(tmp_path)
