"""A network of one's own: an attribute of a module that has ``embed``, or that makes such a thing when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

from ..faults import EvaluationError
from .network import Embedded, cosine


class PythonNetwork:
    """Args:
        place: ``package.module:attribute``. What it names, or returns, has ``embed(pictures)``, which gives an ``Embedded`` or a
            pair of vectors ``(N, D)`` and found ``(N,)``; perhaps ``similarity`` (else it is the cosine), ``name`` and
            ``fingerprint`` (else what it said is kept as long as the place is called the same).

    Raises:
        EvaluationError: there is no such thing, or it has no ``embed``.
    """

    def __init__(self, place: str) -> None:
        module, _, attribute = place.partition(":")
        try:
            found = getattr(import_module(module), attribute)
            self._inner: Any = found if hasattr(found, "embed") and not isinstance(found, type) else found()
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise EvaluationError(
                f"python:{place} names no network ({error}): write python:PACKAGE.MODULE:ATTRIBUTE, of a module that Python"
                " finds from here."
            ) from error
        if not callable(getattr(self._inner, "embed", None)):
            raise EvaluationError(f"python:{place} names no network: it has no embed(pictures).")
        self.name = str(getattr(self._inner, "name", attribute))
        self.fingerprint = str(getattr(self._inner, "fingerprint", place))

    def embed(self, pictures: Sequence[Image.Image]) -> Embedded:
        """What it says.

        Raises:
            EvaluationError: it does not answer for each picture.
        """
        said = self._inner.embed(pictures)
        vectors, found = (said.vectors, said.found) if hasattr(said, "vectors") else said
        vectors, found = np.asarray(vectors, np.float32), np.asarray(found, bool)
        if vectors.ndim != 2 or found.shape != (len(pictures),) or len(vectors) != len(pictures):
            raise EvaluationError(
                f"The network {self.name} answers {vectors.shape} and {found.shape} for {len(pictures)} pictures: embed gives"
                " (N, D) vectors and (N,) found."
            )
        if not np.isfinite(vectors[found]).all():
            raise EvaluationError(f"The network {self.name} answers what is not finite.")
        return Embedded(vectors, found)

    def similarity(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Its own, or else the cosine."""
        own = getattr(self._inner, "similarity", None)
        return np.asarray(own(left, right), np.float64) if callable(own) else cosine(left, right)
