"""The folder of an evaluation: one protocol and one workflow, whatever ends the command, and nothing of another one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import final

from filelock import FileLock, Timeout

from e4t_core.files.file_errors import FileKind
from e4t_core.files.whole_file import replacing

from .faults import EvaluationError

OWN, RECORD = ".evaluate", "evaluation.json"
REPORT, SCORES = "report.md", "scores.jsonl"
FOLDER = FileKind("Folder of results", "name another with --out", EvaluationError)


@final
class Folder:
    """The folder, held for one command; a context manager.

    Args:
        path: made if need be.

    Raises:
        EvaluationError: it cannot be made, is in use, or holds a report of something else.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.own = path, path / OWN
        try:
            self._record = self._read()
            self.own.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.own / "lock")
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise FOLDER.fault(path, "is in use by another command", "wait for its end, or name another") from error
        except OSError as error:
            raise FOLDER.fault(path, f"cannot be written to ({error.strerror})") from error

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()

    def _read(self) -> dict[str, str]:
        place = self.path / RECORD
        if not place.exists():
            if any((self.path / name).exists() for name in (REPORT, SCORES, "report.jsonl")):
                raise FOLDER.fault(self.path, "holds a report of something else")
            return {}
        try:
            held = json.loads(place.read_text(encoding="utf-8"))
            return {str(name): str(value) for name, value in held.items()}
        except (ValueError, AttributeError) as error:
            raise FOLDER.fault(self.path, f"has a broken {RECORD}") from error

    def keep(self, parts: Mapping[str, object]) -> None:
        """Notes what is evaluated; what was noted by an earlier command must be the same.

        Args:
            parts: what it consists of, by the names that a message gives them; values as JSON has them.

        Raises:
            EvaluationError: the folder holds an evaluation of something else.
        """
        digests = {
            name: hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
            for name, value in parts.items()
        }
        changed = [name for name, value in digests.items() if self._record.get(name, value) != value]
        if changed:
            raise FOLDER.fault(self.path, f"holds a report with other {' and '.join(changed)}")
        self._record |= digests
        with replacing(self.path / RECORD) as temporary:
            temporary.write_text(json.dumps(self._record, indent=2), encoding="utf-8")
