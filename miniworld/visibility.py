"""Which attributes can be seen in a picture: a hat hides hair, a bald head has no hair color.

The renderer itself is asked. An attribute counts in a picture if drawing the same picture with that attribute changed
moves at least 20 pixels by more than 0.1 (of [0, 1], in any color channel).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .attributes import DOMAINS, EDITS, Identity, Scene
from .renderer import render

PIXELS = 20
DIFFERENCE = 0.1
BATCH = 16  # pictures drawn at once: larger ones leave a core's cache


def attributes(domain: str) -> list[str]:
    """All that can be asked of a picture of a domain, in the judges' words."""
    spec = DOMAINS[domain]
    named = [f"{domain} {name}" for name in spec.named]
    marks = [f"{domain} mark {place}" for place in spec.marks]
    return [*EDITS, *named, *marks, *(f"{domain} {name}" for name in spec.geometry)]


def true_value(identity: Identity, scene: Scene, attribute: str) -> int | float:
    """The answer: an index for a classification, a number in [0, 1] for geometry.

    Raises:
        KeyError: this identity's domain has no such attribute.
    """
    spec = identity.spec
    if attribute in EDITS:
        return int(getattr(scene, attribute))
    name = attribute.removeprefix(f"{identity.domain} ")
    if name in spec.named:
        return identity.named[list(spec.named).index(name)]
    if name in spec.geometry:
        return identity.geometry[spec.geometry.index(name)]
    if name.removeprefix("mark ") in spec.marks:
        return identity.marks[list(spec.marks).index(name.removeprefix("mark "))]
    raise KeyError(attribute)


def _other(index: int, count: int) -> int:
    """A value far from ``index`` in the list: neighbors there may be of similar color."""
    return (index + max(1, count // 2)) % count


def _replaced(values: tuple, place: int, value: float) -> tuple:
    return (*values[:place], value, *values[place + 1 :])


def changed(identity: Identity, scene: Scene, attribute: str) -> tuple[Identity, Scene]:
    """The same picture with one attribute changed."""
    spec = identity.spec
    if attribute in EDITS:
        return identity, scene.edited(**{attribute: _other(getattr(scene, attribute), len(EDITS[attribute]))})
    name = attribute.removeprefix(f"{identity.domain} ")
    value = true_value(identity, scene, attribute)
    if name in spec.named:
        place = list(spec.named).index(name)
        other = _other(int(value), len(spec.named[name]))
        return replace(identity, named=_replaced(identity.named, place, other)), scene
    if name in spec.geometry:
        other_number = value + 0.5 if value < 0.5 else value - 0.5
        place = spec.geometry.index(name)
        return replace(identity, geometry=_replaced(identity.geometry, place, other_number)), scene
    mark = name.removeprefix("mark ")
    place = list(spec.marks).index(mark)
    other = _other(int(value), len(spec.marks[mark]))
    return replace(identity, marks=_replaced(identity.marks, place, other)), scene


def differs(first: Tensor, second: Tensor) -> Tensor:
    """Whether two stacks of pictures ``(B, 3, H, W)`` show a visible difference: ``(B,)``."""
    return ((first - second).abs().amax(1) > DIFFERENCE).flatten(1).sum(1) >= PIXELS


def visible(identities: Sequence[Identity], scenes: Sequence[Scene], asked: Sequence[str]) -> Tensor:
    """Whether each asked attribute can be seen in each picture: ``(B, len(asked))``.

    All identities are of the domain whose attributes are asked.
    """
    columns = []
    for start in range(0, len(identities), BATCH):
        some, theirs = identities[start : start + BATCH], scenes[start : start + BATCH]
        pictures = render(some, theirs)
        rows = []
        for attribute in asked:
            pairs = [changed(i, s, attribute) for i, s in zip(some, theirs, strict=True)]
            rows.append(differs(pictures, render([i for i, _ in pairs], [s for _, s in pairs])))
        columns.append(torch.stack(rows, dim=1))
    return torch.cat(columns)
