"""What was encoded by a CLIP with concepts, so that a sampler can tell from a tensor which prompt it came from.

Conditioning travels far between the text encoder and the sampler: it is concatenated, averaged, multiplied, zeroed, and
some of these nodes drop or keep marks wrongly. So prompts are recognised by CONTENT: every 77-token chunk of what
arrives is compared with the chunks of remembered prompts,

    chunk = r,   chunk = g·r,   or   chunk = g·r1 + (1 - g)·r2,

and can then be rebuilt with r as it is for another word embedding, by the same arithmetic, bit for bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A chunk made by other arithmetic than the stock nodes' is within rounding of its formula: 1e-7 squared and some room.
ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """One encoded prompt.

    Attributes:
        static: ``(1, T, D)`` as the text encoder gave it with static embeddings, on the CPU.
        sections: number of equally long chunks that T consists of.
        concepts: fingerprints of the concepts in it -> the words they were called by; empty for a plain prompt.
        encode: word embeddings ``(B, D)`` or ``(1, D)`` by concept fingerprint -> ``(B, T, D)``; None for a plain prompt.
        encoder: identity of the text encoder module, to group what must be held in memory.
    """

    static: Tensor
    sections: int
    concepts: dict[str, str]
    encode: Callable[[dict[str, Tensor], Sequence[object]], Tensor] | None
    encoder: object

    def chunks(self) -> list[Tensor]:
        """``static`` cut into its sections, ``(T / sections, D)`` each."""
        return list(self.static[0].chunk(self.sections, dim=0))


@dataclass(frozen=True, eq=False)
class Term:
    """``factor`` times one chunk of a remembered prompt."""

    prompt: EncodedPrompt
    chunk: int
    factor: float | None  # None: exactly the chunk


@dataclass(frozen=True, eq=False)
class Chunk:
    """How one chunk of a conditioning tensor is made: of these terms, exactly or up to rounding; or of unknowns."""

    terms: tuple[Term, ...]
    exact: bool


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a conditioning tensor is made of remembered prompts."""

    tensor: Tensor
    length: int
    chunks: tuple[Chunk, ...]
    complete: bool

    def prompts(self) -> list[EncodedPrompt]:
        """The remembered prompts in it that hold a concept, each once."""
        found = [term.prompt for chunk in self.chunks for term in chunk.terms if term.prompt.concepts]
        return list(dict.fromkeys(found))

    def rebuild(self, fresh: dict[EncodedPrompt, Tensor]) -> Tensor:
        """The tensor with some prompts encoded anew, ``(B, T, D)``.

        Args:
            fresh: prompt -> ``(B, T', D)`` or ``(1, T', D)`` on the tensor's device.
        """
        rows = max([1, *(value.shape[0] for value in fresh.values())])
        parts = []
        for index, chunk in enumerate(self.chunks):
            old = self.tensor[:, index * self.length : (index + 1) * self.length]
            if not any(term.prompt in fresh for term in chunk.terms):
                parts.append(old.expand(rows, -1, -1))
                continue
            values = []
            for term in chunk.terms:
                static = term.prompt.chunks()[term.chunk].to(old)[None]
                new = static
                if term.prompt in fresh:
                    new = fresh[term.prompt].to(old).chunk(term.prompt.sections, dim=1)[term.chunk]
                if not chunk.exact:
                    new = new - static
                values.append(new if term.factor is None else new * term.factor)
            total = values[0] if len(values) == 1 else values[0] + values[1]
            parts.append((total if chunk.exact else old + total).expand(rows, -1, -1))
        return torch.cat(parts, dim=1)


class PromptMemory:
    """Remembers encoded prompts, the last encoded or used first.

    Use counts, because a prompt that does not change is encoded once and drawn with from ComfyUI's own cache, however
    many others come and go beside it in a batch of jobs.

    Args:
        limit: prompts kept (SD 1.x: 0.23 MB per 77 tokens).
        encoders: different text encoder modules whose prompts are kept; a remembered prompt keeps its encoder in RAM.
    """

    def __init__(self, limit: int = 64, encoders: int = 2) -> None:
        self._limit, self._encoders = limit, encoders
        self._prompts: OrderedDict[int, EncodedPrompt] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prompts)

    def clear(self) -> None:
        """Forget all."""
        self._prompts.clear()

    def remember(self, prompt: EncodedPrompt) -> None:
        """Keep a prompt, in place of an older one that gave the same tensor with the same concepts."""
        for key, old in list(self._prompts.items()):
            if old.concepts == prompt.concepts and torch.equal(old.static, prompt.static):
                del self._prompts[key]
        self._prompts[id(prompt)] = prompt
        self._prompts.move_to_end(id(prompt), last=False)
        while len(self._prompts) > self._limit:
            self._prompts.popitem(last=True)
        recent = list(dict.fromkeys(id(kept.encoder) for kept in self._prompts.values()))[: self._encoders]
        for key, kept in list(self._prompts.items()):
            if id(kept.encoder) not in recent:
                del self._prompts[key]

    def recognise(self, tensor: Tensor, hints: Iterable[EncodedPrompt] = ()) -> Recipe | None:
        """How a conditioning tensor ``(1, T, D)`` is made of remembered prompts, or None if nothing of it is known.

        Args:
            tensor: on any device.
            hints: prompts that its mark names; they count first, and also after the memory has dropped them.
        """
        prompts = list(dict.fromkeys([*hints, *self._prompts.values()]))
        prompts = [prompt for prompt in prompts if prompt.static.shape[-1] == tensor.shape[-1]]
        lengths = {prompt.static.shape[1] // prompt.sections for prompt in prompts}
        length = next((value for value in lengths if tensor.shape[1] % value == 0), None)
        if tensor.shape[0] != 1 or length is None:
            return None
        candidates = [
            Term(prompt, index, None)
            for prompt in prompts
            if prompt.static.shape[1] // prompt.sections == length
            for index in range(prompt.sections)
        ]
        values = [term.prompt.chunks()[term.chunk] for term in candidates]
        target = tensor[0].detach().to("cpu", values[0].dtype)
        chunks = [_explain(part, candidates, values) for part in target.split(length, dim=0)]
        if all(chunk is None for chunk in chunks):
            return None
        known = tuple(chunk or Chunk((), exact=False) for chunk in chunks)
        for used in [id(term.prompt) for chunk in known for term in chunk.terms]:
            if used in self._prompts:
                self._prompts.move_to_end(used, last=False)
        return Recipe(tensor, length, known, complete=all(chunk is not None for chunk in chunks))


def _explain(target: Tensor, candidates: list[Term], values: list[Tensor]) -> Chunk | None:
    """How a chunk ``(length, D)`` is made of candidates, whose values are given; None if it is not."""
    if not target.any():
        return Chunk((), exact=True)
    for term, value in zip(candidates, values, strict=True):
        if torch.equal(value, target):
            return Chunk((term,), exact=True)
    return _combination(target, candidates, values)


def _combination(target: Tensor, candidates: list[Term], values: list[Tensor]) -> Chunk | None:
    """The best ``g·r`` or ``g1·r1 + g2·r2`` by least squares, where at least one term holds a concept."""
    basis = torch.stack([value.reshape(-1) for value in values]).double()
    wanted = target.reshape(-1).double()
    gram, dots, energy = basis @ basis.T, basis @ wanted, float(wanted @ wanted)
    spoken = [index for index, term in enumerate(candidates) if term.prompt.concepts]

    for index in spoken:
        factor = float(dots[index] / gram[index, index])
        if energy - factor * float(dots[index]) < ROUNDING * energy:
            return _scaled(target, candidates[index], values[index], factor)
    best: tuple[float, int, int, float, float] | None = None
    for i in spoken:
        for j in range(len(candidates)):
            determinant = float(gram[i, i] * gram[j, j] - gram[i, j] ** 2)
            if j == i or determinant <= 1e-9 * float(gram[i, i] * gram[j, j]):
                continue
            a = float(dots[i] * gram[j, j] - dots[j] * gram[i, j]) / determinant
            b = float(dots[j] * gram[i, i] - dots[i] * gram[i, j]) / determinant
            residual = energy - a * float(dots[i]) - b * float(dots[j])
            if residual < ROUNDING * energy and (best is None or residual < best[0]):
                best = (residual, i, j, a, b)
    if best is None:
        return None
    _, i, j, a, b = best
    return _blended(target, (candidates[i], candidates[j]), (values[i], values[j]), (a, b))


def _scaled(target: Tensor, term: Term, value: Tensor, factor: float) -> Chunk:
    # A widget's factor has few decimals: with it, stock arithmetic is met bit for bit.
    for guess in (round(factor, 2), round(factor, 3), factor):
        if torch.equal(value * guess, target):
            return Chunk((Term(term.prompt, term.chunk, guess),), exact=True)
    return Chunk((Term(term.prompt, term.chunk, factor),), exact=False)


def _blended(
    target: Tensor, terms: tuple[Term, Term], values: tuple[Tensor, Tensor], factors: tuple[float, float]
) -> Chunk:
    a, b = factors
    # The stock node multiplies by strength and by 1 - strength; which of the two terms it was called with is unknown.
    guesses = [(round(a, n), 1.0 - round(a, n)) for n in (2, 3)] + [(1.0 - round(b, n), round(b, n)) for n in (2, 3)]
    for guess in guesses:
        if torch.equal(values[0] * guess[0] + values[1] * guess[1], target):
            made = tuple(Term(t.prompt, t.chunk, g) for t, g in zip(terms, guess, strict=True))
            return Chunk(made, exact=True)
    made = tuple(Term(t.prompt, t.chunk, g) for t, g in zip(terms, factors, strict=True))
    return Chunk(made, exact=False)
