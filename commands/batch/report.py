"""The report of a batch: JSON lines, one for each picture and one for each job that failed; also what says what is done.

Lines are only appended while a batch runs, each on the disk before the next job is taken: whatever ends the command, at most
the last one is half written, and it is dropped. Where a job has several sets of lines, because it was tried again, the last
one counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from e4t_core.files.file_errors import FileError, FileKind
from e4t_core.files.whole_file import replacing

from .faults import BatchError
from .jobs import Job

Line = dict[str, Any]


class ReportError(BatchError, FileError):
    """A report that cannot be read or written."""


FILE = FileKind("Report", "name another folder with --out", ReportError)


class Report:
    """The file, and for each job its last lines.

    Args:
        path: of the file; it is made with the first line.

    Raises:
        ReportError: it cannot be read, or is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, list[Line]] = {}
        self._attempts: dict[str, int] = {}
        try:
            text = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise FILE.fault(path, f"cannot be read ({error.strerror})", "check its permissions") from error
        whole = text[: text.rfind(b"\n") + 1]
        for number, written in enumerate(whole.splitlines(), 1):
            self._take(number, written)
        # The lines of a job are written together: if one is missing, the job was not done.
        for key in [key for key, lines in self._lines.items() if len(lines) != lines[0]["pictures"]]:
            del self._lines[key]
            self._attempts[key] -= 1
        if whole != text:
            os.truncate(path, len(whole))

    def _take(self, number: int, written: bytes) -> None:
        try:
            line = json.loads(written)
            key, attempt, place = str(line["job"]), int(line["attempt"]), int(line["picture"])
            line |= {"pictures": int(line["pictures"]), "file": line["file"], "error": line["error"]}
        except (ValueError, KeyError, TypeError) as error:
            raise FILE.fault(self.path, f"has a line that no batch wrote, number {number}") from error
        if place == 1:
            self._lines[key] = [line]
        elif key in self._lines:
            self._lines[key].append(line)
        self._attempts[key] = attempt

    def lines(self, key: str) -> list[Line]:
        """What became of a job: its pictures' lines, the line of its failure, or nothing yet."""
        return self._lines.get(key, [])

    def all_lines(self) -> Iterable[Line]:
        """The lines that count, of any job."""
        return (line for lines in self._lines.values() for line in lines)

    def attempts(self, key: str) -> int:
        """How often a job ended."""
        return self._attempts.get(key, 0)

    def drop(self, key: str) -> None:
        """A job counts as not done: its pictures are gone, or it is tried again."""
        self._lines.pop(key, None)

    def add(self, lines: list[Line]) -> None:
        """Append the lines of one job; they are on the disk when this returns.

        Raises:
            ReportError: they could not be written.
        """
        text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
        try:
            with self.path.open("ab") as file:
                file.write(text.encode("utf-8", "backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FILE.fault(self.path, f"cannot be written to ({error.strerror})", "make room, or check it") from error
        key = lines[0]["job"]
        self._lines[key], self._attempts[key] = lines, lines[0]["attempt"]

    def tidy(self, order: Iterable[Job]) -> None:
        """Write the file anew: what counts alone, jobs in this order, then those of earlier commands.

        Raises:
            ReportError: it could not be written.
        """
        keys = [job.key for job in order]
        known = set(keys)
        keys += [key for key in self._lines if key not in known]
        lines = [line for key in keys for line in self._lines.get(key, [])]
        if not lines:
            return
        try:
            with replacing(self.path) as temporary, temporary.open("wb") as file:
                for line in lines:
                    file.write(f"{json.dumps(line, ensure_ascii=False)}\n".encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise FILE.fault(self.path, f"cannot be written to ({error.strerror})", "make room, or check it") from error


def line(job: Job, attempt: int, seconds: float | None, file: str | None, error: str | None) -> Line:
    """What is said of one picture, or of a job that failed.

    Args:
        job: the job.
        attempt: counted from 1.
        seconds: that the server took for the job; none where nobody knows.
        file: the picture, relative to the report.
        error: why there is none.
    """
    return {
        "concept": job.photo.concept,
        "prompt": job.row.prompt,
        "seed": job.seed,
        "seconds": None if seconds is None else round(seconds, 3),
        "file": file,
        "error": error,
        "photo": job.photo.path.name,
        "inputs": dict(job.row.inputs),
        "job": job.key,
        "attempt": attempt,
        "picture": 1,
        "pictures": 1,
    }
