"""Kinds of change that a concept makes to the weights of its base model; a host turns them into patches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Full:
    """``W + difference``.

    Attributes:
        name: canonical name of the weight.
        difference: of the weight's shape.
    """

    name: str
    difference: Tensor


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


WeightChange = Full | Scaled


def full_differences(changes: Iterable[WeightChange]) -> dict[str, Tensor]:
    """The :class:`Full` changes as difference by canonical name."""
    return {change.name: change.difference for change in changes if isinstance(change, Full)}


def shared_factors(changes: Iterable[WeightChange]) -> dict[str, tuple[Tensor, Tensor]]:
    """The :class:`Scaled` changes as (P, Q) by canonical name."""
    return {change.name: (change.p, change.q) for change in changes if isinstance(change, Scaled)}


@torch.no_grad()
def shared_differences(base: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """``W * P Q^T``, ``(M, N)`` float32 on the CPU by canonical name; zero matrices are left out.

    Args:
        base: effective weights by canonical name.
        factors: P ``(M, R)`` and Q ``(N, R)`` by canonical name.
    """
    found = {}
    for name, (p, q) in factors.items():
        weight = base[name].float()
        difference = weight * (p.to(weight) @ q.to(weight).T)
        if difference.any():
            found[name] = difference.cpu()
    return found
