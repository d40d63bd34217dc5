"""What a check finds, part by part, before it is written down."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from PIL import Image

from .faults import sentence

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        head: of its columns.
        rows: each as long as the head.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Drawn:
    """A picture that was drawn.

    Attributes:
        caption: its prompt.
        meaning: the prompt with the domain word in the word's place.
        picture: the picture.
        shows_person: whether it was drawn with what was learned of the photo.
    """

    caption: str
    meaning: str
    picture: Image.Image
    shows_person: bool


@dataclass
class Part:
    """One part of a check.

    Attributes:
        title: of it.
        said: sentences.
        tables: figures.
        drawn: pictures.
        losses: of every step of tuning.
        faults: what went wrong, a sentence each; none: all is well.
        seconds: that it took.
    """

    title: str
    said: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    drawn: list[Drawn] = field(default_factory=list)
    losses: Sequence[float] = ()
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Adds a table."""
        self.tables.append(Table(tuple(head), tuple(tuple(map(str, row)) for row in rows)))

    @contextmanager
    def noting(self) -> Iterator[None]:
        """What goes wrong within it becomes a fault of this part, and nothing else ends."""
        try:
            yield
        except Exception as error:
            log.debug("%s", self.title, exc_info=True)
            self.faults.append(sentence(error))


def done(title: str, work: Callable[[Part], None]) -> Part:
    """A part with its work done, well or with faults."""
    part = Part(title)
    started = time.monotonic()
    with part.noting():
        work(part)
    part.seconds = time.monotonic() - started
    return part
