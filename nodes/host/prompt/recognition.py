"""Tell from a conditioning tensor which prompts it was made of, and make it anew with them encoded anew.

Every row of a batch is looked at by itself, stretch by stretch, with chunks of every length that its prompts have. The
prompts that the conditioning is marked with are tried alone first; those in memory help only where they do not suffice.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import explanations
from .arithmetic import Arithmetic, Source, Sum
from .encoded_prompt import EncodedPrompt, digest
from .prompt_memory import PromptMemory

# Prompts of the memory that are tried at once, beside the marked ones.
CANDIDATES = 48


@dataclass(frozen=True, eq=False)
class Stretch:
    """Token rows ``start`` to ``end`` of one prompt of a batch, and how they were made; None: nobody knows."""

    start: int
    end: int
    made: Arithmetic | None


@dataclass(frozen=True, eq=False)
class Row:
    """One prompt of a batch."""

    stretches: tuple[Stretch, ...]

    @property
    def complete(self) -> bool:
        """Whether all of it is explained."""
        return all(stretch.made is not None for stretch in self.stretches)

    def sources(self) -> list[Source]:
        """All chunks of prompts in it."""
        return [source for stretch in self.stretches if stretch.made for source in stretch.made.sources]

    def prompts(self) -> list[EncodedPrompt]:
        """The prompts in it that hold a concept, each once."""
        return list(dict.fromkeys(source.prompt for source in self.sources() if source.prompt.concepts))

    def rebuild(self, old: Tensor, fresh: Mapping[EncodedPrompt, Tensor]) -> Tensor:
        """``(B, T, D)`` from this row ``(1, T, D)`` as it arrived and prompts encoded anew, ``(B, T', D)``."""

        def was(source: Source) -> Tensor:
            return source.static().to(old)[None]

        def now(source: Source) -> Tensor:
            new = fresh.get(source.prompt)
            return was(source) if new is None else new.to(old).split(source.prompt.length, dim=1)[source.chunk]

        parts = []
        for stretch in self.stretches:
            part = old[:, stretch.start : stretch.end]
            if stretch.made and any(source.prompt in fresh for source in stretch.made.sources):
                part = stretch.made.rebuild(part, was, now).to(old)
            parts.append(part)
        rows = max(part.shape[0] for part in parts)
        return torch.cat([part.expand(rows, -1, -1) for part in parts], dim=1)


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a conditioning tensor ``(R, T, D)`` is made of prompts; its row r is for the latents r, r + R, r + 2R ..."""

    tensor: Tensor
    rows: tuple[Row, ...]

    @property
    def complete(self) -> bool:
        """Whether all of it is explained."""
        return all(row.complete for row in self.rows)

    def prompts(self) -> list[EncodedPrompt]:
        """The prompts in it that hold a concept, each once."""
        return list(dict.fromkeys(prompt for row in self.rows for prompt in row.prompts()))

    def sources(self) -> list[Source]:
        """All chunks of prompts that it is made of."""
        return [source for row in self.rows for source in row.sources()]

    def latents_of(self, prompt: EncodedPrompt, count: int) -> list[int]:
        """Which of so many latents a prompt is for."""
        rows = [prompt in row.prompts() for row in self.rows]
        return [latent for latent in range(count) if rows[latent % len(rows)]]

    def rebuild(self, fresh: Mapping[EncodedPrompt, Tensor]) -> Tensor:
        """The tensor with some prompts encoded anew, ``(B, T, D)``; or ``(R, T, D)`` if none differs between latents.

        Args:
            fresh: prompt -> ``(B, T', D)``, one for each latent, or ``(1, T', D)``; on any device.
        """
        latents = max([1, *(value.shape[0] for value in fresh.values())])
        if len(self.rows) == 1:
            return self.rows[0].rebuild(self.tensor, fresh)
        made = []
        for index in range(max(latents, len(self.rows)) if latents == 1 else latents):
            row = index % len(self.rows)
            mine = {
                prompt: value if value.shape[0] == 1 else value[index : index + 1] for prompt, value in fresh.items()
            }
            made.append(self.rows[row].rebuild(self.tensor[row : row + 1], mine))
        return torch.cat(made)


def recognize(
    tensor: Tensor,
    marks: Iterable[EncodedPrompt],
    memory: PromptMemory,
    seen: dict[Hashable, Row] | None = None,
) -> Recipe | None:
    """How a conditioning tensor ``(R, T, D)`` is made of prompts, or None if nothing of it is known.

    Args:
        tensor: on any device.
        marks: the prompts that its conditioning names.
        memory: of prompts whose marks may have been dropped.
        seen: rows that were recognized before, by content and marks; grows.
    """
    width = tensor.shape[-1]
    marked = [prompt for prompt in dict.fromkeys(marks) if prompt.static.shape[-1] == width]
    known = [prompt for prompt in memory.prompts() if prompt.static.shape[-1] == width and prompt not in marked]
    # Of two prompts with the same content, the one that can be encoded again.
    known.sort(key=lambda prompt: bool(prompt.concepts) and prompt.encode is None)
    seen = {} if seen is None else seen
    rows = []
    for row in tensor.detach().to("cpu", torch.float32):
        key = (digest(row), *map(id, marked))
        if key not in seen:
            alone = _explain(row, marked, [])
            seen[key] = alone if alone.complete else _explain(row, marked, known, noise=True)
        rows.append(seen[key])
    recipe = Recipe(tensor, tuple(rows))
    if not any(stretch.made for row in rows for stretch in row.stretches):
        return None
    for prompt in dict.fromkeys(source.prompt for row in rows for source in row.sources()):
        memory.used(prompt)
    return recipe


def _explain(row: Tensor, marked: Sequence[EncodedPrompt], others: Sequence[EncodedPrompt], noise: bool = False) -> Row:
    """One prompt of a batch ``(T, D)``; with noise on it, only where nothing else explains it."""
    known = _Known(marked, others)
    if not known.lengths:
        return Row((Stretch(0, row.shape[0], Sum() if not row.any() else None),))
    stretches: list[Stretch] = []
    while not stretches or stretches[-1].end < row.shape[0]:
        stretches.append(_simple(row, stretches[-1].end if stretches else 0, known))
    whole = _whole(row, stretches, known)
    return Row((whole,) if whole else tuple(_closer(row, stretches, known, noise)))


class _Known:
    """The chunks of some prompts: by content, and by length in tokens.

    Args:
        marked: tried first.
        others: of these, only what most resembles the conditioning.
    """

    def __init__(self, marked: Sequence[EncodedPrompt], others: Sequence[EncodedPrompt]) -> None:
        self.exact: dict[bytes, Source] = {}
        self._marked: dict[int, list[Source]] = {}
        self._others: dict[int, list[Source]] = {}
        for prompts, chunks in ((marked, self._marked), (others, self._others)):
            for prompt in prompts:
                for number, key in enumerate(prompt.digests):
                    if key not in self.exact:
                        self.exact[key] = Source(prompt, number)
                        chunks.setdefault(prompt.length, []).append(self.exact[key])
        self.lengths = list(dict.fromkeys([*self._marked, *self._others]))

    def marked(self, target: Tensor) -> list[Source]:
        """Chunks of marked prompts that are as long as ``target`` ``(L, D)``."""
        return self._marked.get(target.shape[0], [])

    def like(self, target: Tensor) -> list[Source]:
        """Chunks that ``target`` ``(L, D)`` may be made of."""
        others = self._others.get(target.shape[0], [])
        marked = self.marked(target)
        return [*marked, *explanations.nearest(target, others, CANDIDATES, marked[:CANDIDATES])]


def _simple(row: Tensor, start: int, known: _Known) -> Stretch:
    """The stretch from ``start`` on, if it is a chunk, a multiple of one or a blend of two; else one that nobody knows."""
    targets = [row[start : start + length] for length in known.lengths if start + length <= row.shape[0]]
    for target in targets:
        source = known.exact.get(digest(target))
        if source or not target.any():
            return Stretch(start, start + target.shape[0], Sum((source,), (None,)) if source else Sum())
    for target in targets:
        made = explanations.combination(target, known.like(target))
        if made:
            return Stretch(start, start + target.shape[0], made)
    return Stretch(start, min(start + known.lengths[0], row.shape[0]), None)


def _whole(row: Tensor, stretches: Sequence[Stretch], known: _Known) -> Stretch | None:
    """Arithmetic over all of a prompt at once: what was renormalized, or mixed at an angle."""
    made: Arithmetic | None = None
    if all(stretch.made for stretch in stretches):
        made = explanations.angled(row, [stretch.made for stretch in stretches if stretch.made])
    else:
        for length in known.lengths:
            if row.shape[0] % length == 0 and made is None:
                made = explanations.weighting(row, [known.like(part) for part in row.split(length, dim=0)])
    return Stretch(0, row.shape[0], made) if made else None


def _closer(row: Tensor, stretches: Sequence[Stretch], known: _Known, noise: bool) -> list[Stretch]:
    """The same stretches; where nothing simple explains them, token row by token row, or as a marked prompt with noise."""
    done: list[Stretch] = []
    waiting = list(stretches)
    while waiting:
        end = next((n for n, stretch in enumerate(waiting) if stretch.made), len(waiting))
        if end == 0:
            done.append(waiting.pop(0))
            continue
        start, stop = waiting[0].start, waiting[end - 1].end
        tried = (
            _cut(row, start, stop, length, known, noise) for length in known.lengths if (stop - start) % length == 0
        )
        best = max(tried, key=lambda cut: sum(stretch.made is not None for stretch in cut), default=waiting[:end])
        done += best
        del waiting[:end]
    return done


def _cut(row: Tensor, start: int, stop: int, length: int, known: _Known, noise: bool) -> list[Stretch]:
    cut = []
    for begin in range(start, stop, length):
        target = row[begin : begin + length]
        like = known.like(target)
        made = explanations.weighting(target, [like]) or explanations.row_by_row(target, like)
        if made is None and noise:
            made = explanations.noisy(target, [source for source in known.marked(target) if source.prompt.concepts])
        cut.append(Stretch(begin, begin + length, made))
    return cut
