"""Kinds of change that a concept makes to the weights of its base model; a host turns them into patches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .stored_difference import StoredDifference


@dataclass(frozen=True, eq=False)
class Full:
    """``W + difference``.

    Attributes:
        name: canonical name of the weight.
        stored: of the weight's shape, in half precision where that loses nothing that could be measured.
    """

    name: str
    stored: StoredDifference

    @classmethod
    def of(cls, name: str, difference: Tensor) -> Full:
        """A change by a finite difference of the weight's shape, on any device; see :meth:`StoredDifference.of`."""
        return cls(name, StoredDifference.of(difference))

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's."""
        return tuple(self.stored.values.shape)

    def difference(self) -> Tensor:
        """The difference in float32, on the CPU."""
        return self.stored.value()


@dataclass(frozen=True, eq=False)
class LowRank:
    """``W + up @ down``: the difference of a concept that is kept small, a hundredth of it in RAM.

    Attributes:
        name: canonical name of the weight.
        up: ``(M, R)`` float32, on the CPU.
        down: ``(R, N)`` float32, on the CPU; N counts a convolution's inputs times its taps.
        shape: of the weight, ``(M, ...)`` with N numbers in each row.
    """

    name: str
    up: Tensor
    down: Tensor
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """R."""
        return len(self.down)

    @torch.no_grad()
    def difference(self) -> Tensor:
        """The difference in float32, of the weight's shape; made anew at every call."""
        return (self.up @ self.down).reshape(self.shape)

    value = difference
    """As a :class:`StoredDifference` calls it."""


@dataclass(frozen=True, eq=False)
class Scaled:
    """``W * (1 + P Q^T)``: a weight offset that all concepts of one domain have in common.

    A MODEL holds the changes of one owner once, however many concepts it draws: two concepts of a domain would
    otherwise multiply the weights twice.

    Attributes:
        name: canonical name of the weight ``(M, N)``.
        p: ``(M, R)``.
        q: ``(N, R)``.
        owner: fingerprint of what they belong to (the domain's).
    """

    name: str
    p: Tensor
    q: Tensor
    owner: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's."""
        return len(self.p), len(self.q)


WeightChange = Full | LowRank | Scaled
Difference = StoredDifference | LowRank
"""What is added to a weight; ``value()`` is it in float32."""


def own_differences(changes: Iterable[WeightChange]) -> dict[str, Difference]:
    """The :class:`Full` and :class:`LowRank` changes by canonical name, as they are kept."""
    own = (change for change in changes if not isinstance(change, Scaled))
    return {change.name: change if isinstance(change, LowRank) else change.stored for change in own}


def full_differences(changes: Iterable[WeightChange]) -> dict[str, StoredDifference]:
    """The :class:`Full` and :class:`LowRank` changes as stored difference by canonical name; only the latter are made anew."""
    return {
        name: StoredDifference.of(kept.value()) if isinstance(kept, LowRank) else kept
        for name, kept in own_differences(changes).items()
    }


def shared_factors(changes: Iterable[WeightChange]) -> dict[str, tuple[Tensor, Tensor]]:
    """The :class:`Scaled` changes as (P, Q) by canonical name."""
    return {change.name: (change.p, change.q) for change in changes if isinstance(change, Scaled)}


@torch.no_grad()
def shared_differences(
    base: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, StoredDifference]:
    """``W * P Q^T``, ``(M, N)`` by canonical name, as they are kept; zero matrices are left out.

    One weight is asked for at a time, and each once: a base may compute them when they are asked for.

    Args:
        base: effective weights by canonical name.
        factors: P ``(M, R)`` and Q ``(N, R)`` by canonical name.
    """
    found = {}
    for name, (p, q) in factors.items():
        weight = base[name].float()
        difference = weight * (p.to(weight) @ q.to(weight).T)
        if difference.any():
            found[name] = StoredDifference.of(difference)
    return found


class TotalDifferences(Mapping[str, StoredDifference]):
    """All that changes a base's weights: :class:`Full` differences plus :class:`Scaled` ones, by canonical name.

    Each is made when it is asked for, from one weight of the base, and none is kept: what a MODEL would add to the weight, with
    the same rounding.

    Args:
        changes: of one concept.
        base: effective weights by canonical name; asked for those with a Scaled change only.

    Raises:
        KeyError: (when asked) the base lacks a weight.
    """

    def __init__(self, changes: Iterable[WeightChange], base: Mapping[str, Tensor]) -> None:
        changes = tuple(changes)
        self._full, self._factors, self._base = full_differences(changes), shared_factors(changes), base
        self._names = tuple(dict.fromkeys((*self._full, *self._factors)))

    def __getitem__(self, name: str) -> StoredDifference:
        full = self._full.get(name)
        if name not in self._factors:
            return self._full[name]
        shared = shared_differences(self._base, {name: self._factors[name]}).get(name)
        if full is None or shared is None:
            return full or shared or StoredDifference.of(torch.zeros_like(self._base[name]))
        # A sum of two has more digits than half precision.
        return StoredDifference(shared.value() + full.value(), 1.0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
