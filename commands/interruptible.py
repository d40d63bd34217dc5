"""Ctrl-C ends a command without a traceback, also while it imports what it needs."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

STOPPED = 130
"""Exit status after Ctrl-C, as shells have it."""
GOES_ON = "Stopped; what is done so far is kept: the same command goes on from there."
NOTHING_HALF = "Stopped: no file is left half written."
Arguments = ParamSpec("Arguments")


def interruptible(said: str) -> Callable[[Callable[Arguments, int]], Callable[Arguments, int]]:
    """Makes of a command's ``main`` one that returns 130 after Ctrl-C and says so; import what takes long inside of it, with
    :func:`importing`."""

    def decorated(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
        @functools.wraps(main)
        def answering(*arguments: Arguments.args, **options: Arguments.kwargs) -> int:
            with _watched() as presses:
                try:
                    status = main(*arguments, **options)
                except KeyboardInterrupt:
                    status = STOPPED
            # A library in the middle of its work may turn the press into an error of its own.
            if status == STOPPED or (presses and status != 0):
                _say(said)
                return STOPPED
            return status

        return answering

    return decorated


@contextmanager
def _watched() -> Iterator[list[int]]:
    """Ctrl-C does what it does, and is also noted in the list."""
    presses: list[int] = []

    def press(number: int, frame: object) -> None:
        presses.append(number)
        raise KeyboardInterrupt

    # Only the main thread is interrupted, and nobody else's handler is touched.
    if (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        or threading.current_thread() is not threading.main_thread()
    ):
        yield presses
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def left_to_asyncio() -> Iterator[None]:
    """Ctrl-C within it is for ``asyncio.run``, which then cancels its main task alone: what that task started can still answer.
    It leaves any handler but the default one in place, whose KeyboardInterrupt would cancel every task at once."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def importing(said: str) -> Iterator[None]:
    """Ctrl-C ends the process at once: interrupted imports of torch or numpy raise whatever their state leads to."""

    def leave(number: int, frame: object) -> None:
        _say(said)
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


def _say(said: str) -> None:
    sys.stderr.write(f"{said}\n")
    sys.stderr.flush()
