"""Work in a process of its own: what it holds goes with it, and running out of memory ends nothing else.

Asked and answered in files of a folder: ``job.json``, and for each task ``TASK.json`` with what it found or a sentence
about its fault, as soon as it is known.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from e4t_core.files.file_errors import shortened

from .faults import CheckError, sentence

log = logging.getLogger(__name__)

JOB = "job.json"
ROOT = Path(__file__).resolve().parents[2]
Found = dict[str, Any]
STOP_SECONDS = 5.0


def ask(module: str, job: Mapping[str, Any], folder: Path, python: str = sys.executable) -> None:
    """Runs ``python -m module FOLDER`` to its end; :func:`answer_of` reads what came of it.

    Args:
        module: whose process calls :func:`answer`.
        job: what it is told, as JSON's types.
        folder: empty, for the files.
        python: that runs it.

    Raises:
        CheckError: the program cannot be started, or was ended from outside.
    """
    (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
    with (folder / "said").open("wb") as said:
        try:
            # A group of its own: Ctrl-C reaches the command alone, which ends it.
            process = subprocess.Popen(
                [python, "-m", module, str(folder)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=os.name != "nt",
            )
        except OSError as error:
            raise CheckError(
                f"{python} cannot be run ({error.strerror}): name ComfyUI's Python with --python."
            ) from error
        try:
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait(STOP_SECONDS)
            raise
    if status == -getattr(signal, "SIGKILL", 9):
        raise CheckError(
            "The system ended the process that did this (signal 9), as it does when memory is short: close other programs, and"
            " try again."
        )
    if status != 0:
        raise CheckError(f"The process that did this ended with status {status}: {_last_word(folder / 'said')}")


def _last_word(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return shortened(lines[-1] if lines else "it said nothing.", 300)


def answer_of(folder: Path, task: str) -> Found:
    """What a task found.

    Raises:
        CheckError: it failed, with its sentence; or the process ended before it.
    """
    path, said = folder / f"{task}.json", folder / "said"
    if not said.exists():
        raise CheckError("The process that does this was not started: part 1 says why.")
    if not path.exists():
        raise CheckError(f"The process that did this ended before it was done: {_last_word(said)}")
    told: Found = json.loads(path.read_text(encoding="utf-8"))
    if "fault" in told:
        raise CheckError(str(told["fault"]))
    return told


def answer(folder: Path, tasks: Mapping[str, Callable[[Found], Found]]) -> None:
    """In the other process: does the job's tasks one after another; a fault of one does not keep the others from it.

    Args:
        folder: of the files.
        tasks: by name; each gets the job and gives JSON's types.
    """
    job: Found = json.loads((folder / JOB).read_text(encoding="utf-8"))
    for name in job["tasks"]:
        try:
            told = tasks[name](job)
        except Exception as error:
            log.exception("%s failed", name)
            told = {"fault": sentence(error)}
        (folder / f"{name}.json").write_text(json.dumps(told), encoding="utf-8")
