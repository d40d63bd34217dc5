"""The last few things that were made, per process: a loader's workers are copies of their parent and share nothing."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class RecentlyUsed(Generic[Key, Value]):
    """Keeps at most ``limit`` values, the longest unused goes first; empty in a forked or unpickled copy.

    Args:
        limit: how many are kept.
        discard: called with each value that goes ("close" of a file).
    """

    def __init__(self, limit: int, discard: Callable[[Value], object] | None = None) -> None:
        self._limit, self._discard = limit, discard
        self._kept: OrderedDict[Key, Value] = OrderedDict()
        self._process = os.getpid()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The kept value of ``key``, or what ``make`` gives."""
        if self._process != os.getpid():
            # A forked copy shares the parent's file positions: start anew, and leave the parent's files open.
            self._kept, self._process = OrderedDict(), os.getpid()
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = make()
        self._kept[key] = value
        if len(self._kept) > self._limit:
            _, oldest = self._kept.popitem(last=False)
            if self._discard is not None:
                self._discard(oldest)
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {"_limit": self._limit, "_discard": self._discard, "_kept": OrderedDict(), "_process": os.getpid()}
