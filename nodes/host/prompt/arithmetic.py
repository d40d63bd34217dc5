"""How a stretch of conditioning was made of encoded prompts, and the same arithmetic with prompts encoded anew.

Each kind of arithmetic is a small class: which chunks of prompts it was made of, and :meth:`rebuild`. They are found, and
checked against the tensor that arrived, in ``explanations.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from .encoded_prompt import EncodedPrompt


@dataclass(frozen=True, eq=False)
class Source:
    """One chunk of a remembered prompt."""

    prompt: EncodedPrompt
    chunk: int

    def static(self) -> Tensor:
        """``(L, D)`` on the CPU."""
        return self.prompt.chunks()[self.chunk]


# A source -> ``(B, L, D)`` or ``(1, L, D)`` on the conditioning's device.
Values = Callable[[Source], Tensor]


class Arithmetic(Protocol):
    """How one stretch of a conditioning tensor was made."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """The chunks that it was made of."""
        ...

    def rebuild(self, old: Tensor, was: Values, now: Values) -> Tensor:
        """The stretch with its prompts encoded anew.

        Args:
            old: ``(1, L, D)`` as it arrived.
            was: values with static embeddings.
            now: values with the new ones.
        """
        ...


@dataclass(frozen=True, eq=False)
class Sum:
    """``r``, ``g r`` or ``g1 r1 + g2 r2``, to the last bit; of nothing for zeros. A factor of None stands for no factor.

    Attributes:
        factors: for each source, one for the stretch or one for each token row ``(L, 1)``.
    """

    sources: tuple[Source, ...] = ()
    factors: tuple[float | Tensor | None, ...] = ()

    def rebuild(self, old: Tensor, was: Values, now: Values) -> Tensor:
        """See :class:`Arithmetic`."""
        values = []
        for source, factor in zip(self.sources, self.factors, strict=True):
            value = now(source)
            by = factor.to(value) if torch.is_tensor(factor) else factor
            values.append(value if by is None else value * by)
        return values[0] + values[1] if len(values) == 2 else values[0] if values else old


@dataclass(frozen=True, eq=False)
class Shift:
    """What arrived, plus by how much each term changes: up to rounding, whatever else is in it.

    Attributes:
        terms: arithmetic of which what arrived is the sum, beside what stays.
    """

    terms: tuple[Arithmetic, ...]

    @property
    def sources(self) -> tuple[Source, ...]:
        """See :class:`Arithmetic`."""
        return tuple(source for term in self.terms for source in term.sources)

    def rebuild(self, old: Tensor, was: Values, now: Values) -> Tensor:
        """See :class:`Arithmetic`."""
        total = old
        for term in self.terms:
            total = total + (term.rebuild(old, was, now) - term.rebuild(old, was, was))
        return total


@dataclass(frozen=True, eq=False)
class Reweighted:
    """Token rows times weights, then all of it scaled so that its mean (or norm) is what it was without weights.

        y = w r;   out = s y mean(r) / mean(y)    or    s y |r| / |y|

    Attributes:
        sources: one after the other.
        weights: ``(L, 1)`` of all of them together.
        keeps: what is the same as without weights.
        scale: s, by which another node multiplied that.
    """

    sources: tuple[Source, ...]
    weights: Tensor
    keeps: Literal["mean", "norm"]
    scale: float = 1.0

    def rebuild(self, old: Tensor, was: Values, now: Values) -> Tensor:
        """See :class:`Arithmetic`."""
        parts = [now(source) for source in self.sources]
        rows = max(part.shape[0] for part in parts)
        plain = torch.cat([part.expand(rows, -1, -1) for part in parts], dim=1)
        return torch.cat([self.weigh(row[None]) for row in plain])

    def weigh(self, plain: Tensor) -> Tensor:
        """One prompt ``(1, L, D)`` by the formula above."""
        made = self.kept(plain) * (plain * self.weights.to(plain))
        return made if self.scale == 1.0 else made * self.scale

    def kept(self, plain: Tensor) -> Tensor:
        """By what the weighted prompt is scaled to keep its mean or norm."""
        size = torch.mean if self.keeps == "mean" else torch.linalg.norm
        return size(plain) / size(plain * self.weights.to(plain))


@dataclass(frozen=True, eq=False)
class Leaning:
    """Token rows that lean further to, or away from, what the empty prompt has there (perpendicular weighting).

        out = f r + a <z, r> / |r|^2  r

    Attributes:
        sources: the prompt's chunk r and the other prompt's chunk z.
        fixed: f ``(L, 1)``.
        leaning: a ``(L, 1)``.
    """

    sources: tuple[Source, ...]
    fixed: Tensor
    leaning: Tensor

    def rebuild(self, old: Tensor, was: Values, now: Values) -> Tensor:
        """See :class:`Arithmetic`."""
        row, other = now(self.sources[0]), now(self.sources[1])
        part = (other * row).sum(-1, keepdim=True) / row.square().sum(-1, keepdim=True)
        return (self.fixed.to(row) + self.leaning.to(row) * part) * row


@dataclass(frozen=True, eq=False)
class Mixed:
    """Two prompts mixed at an angle (slerp), or with the magnitude that their own would average to.

        slerp: sin((1-v) o)/sin(o) low + sin(v o)/sin(o) high,  cos(o) the cosine between them
        magnitude: m = v high + (1-v) low;   m / |m| (v |high| + (1-v) |low|)

    Attributes:
        sources: the chunks of low, then those of high, equally many.
        share: v.
    """

    sources: tuple[Source, ...]
    share: float
    kind: Literal["slerp", "magnitude"]

    def rebuild(self, old: Tensor, was: Values, now: Values) -> Tensor:
        """See :class:`Arithmetic`."""
        half = len(self.sources) // 2
        parts = [now(source) for source in self.sources]
        rows = max(part.shape[0] for part in parts)
        both = [torch.cat([p.expand(rows, -1, -1) for p in ps], dim=1) for ps in (parts[:half], parts[half:])]
        return torch.cat([self.mix(low[None], high[None]) for low, high in zip(*both, strict=True)])

    def mix(self, low: Tensor, high: Tensor) -> Tensor:
        """One pair ``(1, L, D)`` by the formulas above."""
        v = self.share
        if self.kind == "slerp":
            cosine = (low * high).sum() / (low.norm() * high.norm())
            angle = torch.acos(cosine.clamp(-1, 1))
            return torch.sin((1 - v) * angle) / angle.sin() * low + torch.sin(v * angle) / angle.sin() * high
        mixed = v * high + (1 - v) * low
        return mixed / mixed.norm() * (v * high.norm() + (1 - v) * low.norm())
