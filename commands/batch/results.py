"""The folder that a batch writes to: pictures, the report, and what a command needs to go on where another was ended.

A picture is written to a waiting room first, then the report's line, then the picture takes its place. Whichever of these
was the last before an end, the next command finishes or forgets it: a line has its picture, a picture has its line.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from e4t_core.files.file_errors import FileError, FileKind
from e4t_core.files.whole_file import replacing

from .faults import BatchError
from .jobs import Job
from .report import Line, Report, line

REPORT = "report.jsonl"
OWN = ".batch"


class ResultsError(BatchError, FileError):
    """A folder that cannot be written to."""


FOLDER = FileKind("Folder of results", "name another with --out", ResultsError)


@dataclass(frozen=True)
class Picture:
    """A picture as a server has it: the file's bytes, and its suffix with the dot."""

    suffix: str
    held: bytes


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        pictures: none where it failed.
        seconds: that the server took; none where nobody knows.
        error: one sentence where it failed.
    """

    pictures: Sequence[Picture] = field(default=(), repr=False)
    seconds: float | None = None
    error: str | None = None


class Results:
    """The folder, held for one command.

    Args:
        folder: made if need be.

    Raises:
        ResultsError: it cannot be made, or another command writes to it.
        ReportError: its report is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting = folder / OWN / "pictures"
        try:
            self._waiting.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / OWN / "lock")
            self._lock.acquire(timeout=0)
            self.batch = self._id(folder / OWN / "id")
        except Timeout as error:
            raise FOLDER.fault(folder, "is in use by another command", "wait for its end, or name another") from error
        except OSError as error:
            raise FOLDER.fault(folder, f"cannot be written to ({error.strerror})") from error
        self.report = Report(folder / REPORT)
        self._finish()
        self._counts = {said["pictures"] for said in self.report.all_lines() if said["error"] is None}

    def close(self) -> None:
        """Gives the folder to the next command."""
        self._lock.release()

    @staticmethod
    def _id(path: Path) -> str:
        """Of the batch: what a server has is its own only then, not that of another folder with the same jobs."""
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_text(uuid.uuid4().hex)
        return path.read_text().strip()

    def _finish(self) -> None:
        """Does what the last command had no time for."""
        for said in list(self.report.all_lines()):
            if said["file"] is None:
                continue
            if (waiting := self._room(said)).exists():
                self._put(waiting, said["file"])
            elif not (self.folder / said["file"]).exists():
                self.report.drop(said["job"])
        for left in self._waiting.iterdir():
            left.unlink()

    def is_done(self, job: Job, retry_failed: bool = False) -> bool:
        """Whether nothing is left to do for a job."""
        lines = self.report.lines(job.key)
        return bool(lines) and not (retry_failed and lines[0]["error"] is not None)

    def pictures_of_a_job(self) -> int | None:
        """How many pictures the jobs of this folder drew; none where there is no job yet, or they differ."""
        return next(iter(self._counts)) if len(self._counts) == 1 else None

    def add(self, job: Job, outcome: Outcome) -> list[Line]:
        """Keeps what became of a job; all of it is on the disk when this returns.

        Raises:
            ResultsError: it could not be written.
        """
        attempt = self.report.attempts(job.key) + 1
        if outcome.error is not None:
            lines = [line(job, attempt, outcome.seconds, None, outcome.error)]
            self.report.add(lines)
            return lines
        count = len(outcome.pictures)
        self._counts.add(count)
        lines = [
            line(job, attempt, outcome.seconds, job.file(number, picture.suffix), None)
            | {"picture": number, "pictures": count}
            for number, picture in enumerate(outcome.pictures, 1)
        ]
        try:
            for said, picture in zip(lines, outcome.pictures, strict=True):
                with self._room(said).open("wb") as waiting:
                    waiting.write(picture.held)
                    waiting.flush()
                    os.fsync(waiting.fileno())
        except OSError as error:
            raise FOLDER.fault(self.folder, f"cannot be written to ({error.strerror})", "make room") from error
        self.report.add(lines)
        for said in lines:
            self._put(self._room(said), said["file"])
        return lines

    def _room(self, said: Line) -> Path:
        return self._waiting / f"{said['job']}_{said['picture']}{Path(said['file']).suffix}"

    def _put(self, waiting: Path, file: str) -> None:
        place = self.folder / file
        try:
            place.parent.mkdir(exist_ok=True)
            os.replace(waiting, place)
        except OSError as error:
            raise FOLDER.fault(place, f"cannot be written ({error.strerror})", "check its folder") from error
