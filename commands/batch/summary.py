"""What a command shows while jobs end, and says when all have ended."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import final

from commands.progress import Progress
from e4t_core.files.file_errors import shortened

from .jobs import Job
from .prepared import Work
from .results import REPORT, Outcome

log = logging.getLogger(__name__)


@final
class Watch:
    """A progress bar over the jobs; a context manager.

    Args:
        work: what is done.
    """

    def __init__(self, work: Work) -> None:
        self._all, self._left = len(work.plan.jobs), len(work.left)

    def __enter__(self) -> Watch:
        self._bar = Progress(total=self._all, initial=self._all - self._left, desc="pictures", unit="job")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    def doing(self, text: str) -> None:
        """What the server is at."""
        self._bar.set_postfix_str(text)

    def ended(self, job: Job, outcome: Outcome) -> None:
        """One job more is done."""
        if outcome.error is not None:
            log.warning('%s, "%s": %s', job.photo.path.name, shortened(job.row.prompt, 60), outcome.error)
        self._bar.update()


def conclude(work: Work) -> int:
    """Says how it ended; the number of jobs that failed."""
    ends = [work.results.report.lines(job.key) for job in work.plan.jobs]
    failures = sum(lines[0]["error"] is not None for lines in ends)
    pictures = sum(line["file"] is not None for lines in ends for line in lines)
    log.info("%d pictures in %s, one line for each in %s.", pictures, work.results.folder, REPORT)
    if failures:
        log.warning(
            "%d of %d jobs failed; %s says why. Mend that and repeat the command with --retry-failed.",
            failures,
            len(ends),
            REPORT,
        )
    return failures
