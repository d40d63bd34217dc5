"""How many samples could not be read, and whether they are too many."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from .pictures import DataError

log = logging.getLogger(__name__)


class CorruptionCount:
    """Which samples were found corrupt, and whether they are too many.

    Counted are distinct rows, against all rows of the data, so that neither the order nor further epochs change the
    verdict. A process counts what it saw; ``add`` what the others tell to know all.

    Args:
        rows: of the data.
        most: share that is borne (0.01).
    """

    def __init__(self, rows: int, most: float) -> None:
        self.rows, self.most = rows, most
        self.found: dict[int, str] = {}

    def add(self, corrupt: Iterable[tuple[int, str]]) -> None:
        """Count what a batch met; each new one is logged.

        Raises:
            DataError: more than the share that is borne is corrupt.
        """
        for row, text in corrupt:
            if row not in self.found:
                self.found[row] = text
                log.warning("Corrupt sample skipped (%d so far): %s", len(self.found), text)
        if len(self.found) > self.most * self.rows:
            raise DataError(
                f"{len(self.found)} of {self.rows} samples are corrupt, more than {self.most:.2%}; the last was"
                f" {list(self.found.values())[-1]}: prepare the data again, or raise data.most_corrupt."
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"found": dict(self.found)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from a checkpoint."""
        self.found = {int(row): str(text) for row, text in state["found"].items()}
