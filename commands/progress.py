"""Progress of long work: a bar in a terminal; in a log file, as on a cluster, a line a minute."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

SECONDS = 60.0
"""Between two lines in a file; work that is done sooner writes none."""
LINE = "{desc}: {n_fmt} of {total_fmt} in {elapsed}, {remaining} to go{postfix}"


class Progress(tqdm):
    """``tqdm`` with tqdm's arguments; what is no terminal gets lines in place of a bar that is drawn over itself."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._lines = not (options.get("file") or sys.stderr).isatty()
        self._next_line = time.monotonic() + SECONDS
        if self._lines:
            options |= {"mininterval": 0, "miniters": 1, "leave": False, "bar_format": LINE}
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Shows where the work stands; called by tqdm for every change."""
        if not self._lines:
            return bool(super().display(msg, pos))
        if msg is None and time.monotonic() >= self._next_line:
            self.fp.write(f"{self}\n")
            self.fp.flush()
            self._next_line = time.monotonic() + SECONDS
        return False

    def clear(self, nolock: bool = False) -> None:
        """Makes room for another line on a terminal; lines in a file stay."""
        if not self._lines:
            super().clear(nolock)
