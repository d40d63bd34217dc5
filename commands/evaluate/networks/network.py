"""What every network that judges pictures is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Embedded:
    """What a network says of ``N`` pictures.

    Attributes:
        vectors: ``(N, D)`` float32; a row where nothing was found means nothing.
        found: ``(N,)`` bool, whether there was a face to look at.
    """

    vectors: np.ndarray
    found: np.ndarray


class Network(Protocol):
    """Pictures become vectors, and two vectors a similarity."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def fingerprint(self) -> str:
        """Another where its answers may be others: what it said is kept under it."""

    def embed(self, pictures: Sequence[Image.Image]) -> Embedded:
        """What it says of pictures in RGB, of any sizes."""

    def similarity(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """``(N, D)`` and ``(M, D)`` to ``(N, M)``; the higher, the more alike."""


def cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosine of every vector of ``left`` ``(N, D)`` with every one of ``right`` ``(M, D)``: ``(N, M)``."""
    sides = [side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in (left, right)]
    return np.asarray(sides[0] @ sides[1].T, np.float64)


def digest(*paths: Path) -> str:
    """SHA-256 of files, as hexadecimal digits."""
    made = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                made.update(part)
    return made.hexdigest()
