"""How far words went from the coarse word while pictures were drawn, as the live view is told (the paper's figure 7)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from . import host


@contextmanager
def noted_words() -> Iterator[list[list[list[float]]]]:
    """While it is open, each sampling run of this process whose word is refined adds its points, from the noisiest on.

    A point is ``[timestep 0-999, |e_c - e_d| / |e_d|]``; of several pictures in one run it is their mean.
    """
    lengths = host.pack("nodes.host.sampling.word_lengths")
    view = lengths.live_view
    told: list[list[list[float]]] = []

    def send(_message: str, content: dict[str, Any]) -> None:
        told.extend(word["points"] for word in content["words"])

    # In that module alone: learning would draw its previews if it were watched.
    lengths.live_view = SimpleNamespace(is_watched=lambda: True, send=send, WORDS=view.WORDS)
    try:
        yield told
    finally:
        lengths.live_view = view
