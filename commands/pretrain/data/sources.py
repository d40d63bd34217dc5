"""What a source of training pictures is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from .pictures import CorruptSample, Picture, decode


class Source(Protocol):
    """Rows of pictures that can be read in any order, in any process.

    Attributes:
        parts: how many rows lie together (a shard's, a row group's), in file order; their sum is the number of rows.
        window: how many parts are mixed at once, see :class:`~.sample_order.EpochOrder`.
    """

    parts: Sequence[int]
    window: int

    def read(self, row: int, size: int) -> Picture:
        """The picture of a row as a square of ``size`` pixels; the same one at every call.

        Raises:
            CorruptSample: it cannot be read.
        """


class EncodedSource(ABC):
    """A source whose rows are encoded pictures (JPEG, PNG, WebP …).

    Attributes:
        alpha_mask: whether their alpha channels are masks.
    """

    parts: Sequence[int]
    window: int = 1
    alpha_mask: bool = False

    @abstractmethod
    def encoded(self, row: int) -> bytes:
        """The row's bytes.

        Raises:
            OSError, ValueError: they cannot be read.
        """

    @abstractmethod
    def label(self, row: int) -> str:
        """How a person finds the row."""

    def read(self, row: int, size: int) -> Picture:
        try:
            return decode(self.encoded(row), size, self.alpha_mask)
        except (OSError, ValueError) as error:
            raise CorruptSample(self.label(row), str(error)) from error
