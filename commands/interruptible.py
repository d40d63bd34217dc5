"""Ctrl-C ends a command without a traceback, also while it imports what it needs."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

STOPPED = 130
"""Exit status after Ctrl-C, as shells have it."""
Arguments = ParamSpec("Arguments")


def interruptible(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """A command's ``main`` that returns 130 after Ctrl-C; import what takes long inside of it, with :func:`importing`."""

    @functools.wraps(main)
    def answering(*arguments: Arguments.args, **options: Arguments.kwargs) -> int:
        try:
            return main(*arguments, **options)
        except KeyboardInterrupt:
            _say()
            return STOPPED

    return answering


@contextmanager
def importing() -> Iterator[None]:
    """Ctrl-C ends the process at once: interrupted imports of torch or numpy raise whatever their state leads to."""

    def leave(number: int, frame: object) -> None:
        _say()
        os._exit(STOPPED)

    try:
        before = signal.signal(signal.SIGINT, leave)
    except ValueError:  # not in the main thread, which alone is interrupted
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say() -> None:
    sys.stderr.write("Stopped; what is done so far is kept: the same command goes on from there.\n")
    sys.stderr.flush()
