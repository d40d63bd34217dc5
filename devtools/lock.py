"""A hold on a file, for one process at a time, that tells whether the holder before came to its end."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, final

from .console import Failure, step

LOOK_SECONDS = 0.2
"""How often a waiting process looks whether the file is free."""
UNFINISHED = b"unfinished\n"


@final
class Lock:
    """The file `path` held by this process inside a `with` block. The system ends the hold with the process, whatever
    ends that; the text in the file stays, and says whether work was under way.

    A process started with `pass_fds=lock.inherited` goes on holding after this one is killed (not on Windows).

    Raises: Failure if the file cannot be made or locked.
    """

    def __init__(self, path: Path, waiting_for: str) -> None:
        self.path, self._waiting_for = path, waiting_for
        self._file: BinaryIO | None = None

    def __enter__(self) -> Lock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
            if not _try(self._file):
                with step(f"waiting for {self._waiting_for}"):
                    while not _try(self._file):
                        time.sleep(LOOK_SECONDS)
        except OSError as error:
            self._close()
            raise Failure(f"{self.path} could not be locked ({error}); check the folder's rights.") from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    @property
    def inherited(self) -> tuple[int, ...]:
        """What a started process keeps open to hold the lock as well."""
        return () if self._file is None or os.name == "nt" else (self._file.fileno(),)

    @property
    def unfinished(self) -> bool:
        """True if work was begun and not finished, by this process or one before it."""
        return self._held().seek(0) == 0 and self._held().read(len(UNFINISHED)) != b""

    def begin(self) -> None:
        """Notes that work is under way."""
        self._held().seek(0)
        self._held().write(UNFINISHED)

    def finish(self) -> None:
        """Notes that what was begun is done."""
        self._held().truncate(0)

    def _held(self) -> BinaryIO:
        assert self._file is not None, "only inside the with block"
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


if sys.platform == "win32":
    import msvcrt

    _FAR = 1 << 20
    """The byte that is locked: Windows also forbids reading a locked byte, and the text is not for that."""

    def _try(file: BinaryIO) -> bool:
        file.seek(_FAR)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _try(file: BinaryIO) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
