"""One plain sentence when a step cannot go on."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from devtools.console import Failure, reason, run_quietly, step


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device\n", "the disk is full"),
        ("ERROR: Could not find a version that satisfies x (from versions: none)\n", "registry could not be reached"),
        ("Traceback\n  ...\nminiworld.weights.MissingWeightsError: No weights.\n", "No weights"),
        ("", "it said nothing"),
    ],
)
def test_a_programs_output_becomes_a_plain_reason(output: str, expected: str) -> None:
    assert reason(output).startswith(expected) or expected in reason(output)


def test_a_failed_program_is_one_sentence_with_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('the cat sat on it')"]
    with pytest.raises(Failure) as failed:
        run_quietly(command, tmp_path / "logs" / "a.log", "It did not work")
    assert str(failed.value).startswith("It did not work: the cat sat on it")
    assert str(tmp_path / "logs" / "a.log") in str(failed.value)


def test_a_full_disk_is_named_and_the_time_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Failure, match="The disk is full"), step("writing"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "writing: stopped after" in capsys.readouterr().out
