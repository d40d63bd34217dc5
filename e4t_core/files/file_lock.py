"""One writer at a time: a lock that the system ends with the process that holds it, whatever ends that."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.02
# A save takes seconds. Where a lock stays longer, or cannot be had (network drives), writing goes on without.
PATIENCE = 60.0

if sys.platform == "win32":
    import msvcrt

    def _hold(file: int) -> None:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _hold(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def lock(path: str | os.PathLike[str]) -> Iterator[bool]:
    """Hold a file, which is made if need be and stays, for one process at a time.

    Yields:
        Whether it is held: nobody else does meanwhile what is done under it.

    Raises:
        OSError: it could not be made.
    """
    file = os.open(Path(path), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        ends = time.monotonic() + PATIENCE
        held = False
        while not held:
            try:
                _hold(file)
                held = True
            except OSError:
                if time.monotonic() > ends:
                    logger.warning("%s could not be locked: going on without.", path)
                    break
                time.sleep(LOOK_SECONDS)
        yield held
    finally:
        # Closing gives it back.
        os.close(file)
