"""Find out by which arithmetic a stretch of conditioning was made of encoded prompts.

Conditioning travels far between the text encoder and the sampler: it is averaged, multiplied, weighted token by token. All
of this leaves each token row a combination of the same row in some prompts. So factors are fitted, and an explanation
counts only if it gives what arrived, up to rounding; where rounding the factors to a widget's decimals gives it to the
last bit, those are the factors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .arithmetic import Arithmetic, Leaning, Mixed, Reweighted, Shift, Source, Sum

# Share of the energy that may be left over: 1e-7 squared for float32 and some room.
ROUNDING = 1e-9
# Row by row at most this many prompts are mixed at once, and a quarter of the width: more could explain anything.
MIXED = (4, 16, 64)
CLEAN = 2e-6
# Less than this of a prompt under noise is no prompt anymore.
LEFT_OF_IT = 0.05


def combination(target: Tensor, pool: Sequence[Source]) -> Arithmetic | None:
    """``g r`` or ``g1 r1 + g2 r2`` for a chunk ``(L, D)``, where at least one of them holds a concept."""
    spoken = [index for index, source in enumerate(pool) if source.prompt.concepts]
    if not spoken:
        return None
    values = [source.static() for source in pool]
    basis = torch.stack([value.reshape(-1) for value in values]).double()
    wanted = target.reshape(-1).double()
    gram, dots, energy = basis @ basis.T, basis @ wanted, float(wanted @ wanted)
    for index in spoken:
        factor = float(dots[index] / gram[index, index])
        if energy - factor * float(dots[index]) < ROUNDING * energy:
            return _scaled(target, pool[index], values[index], factor)
    diagonal, rows = gram.diagonal(), torch.tensor(spoken)
    cross = gram[rows]
    determinant = diagonal[rows, None] * diagonal - cross.square()
    usable = determinant > 1e-9 * diagonal[rows, None] * diagonal
    determinant = determinant.where(usable, torch.ones_like(determinant))
    a = (dots[rows, None] * diagonal - dots * cross) / determinant
    b = (dots * diagonal[rows, None] - dots[rows, None] * cross) / determinant
    left = (energy - a * dots[rows, None] - b * dots).where(usable, torch.full_like(a, torch.inf))
    best = int(left.argmin())
    i, j = best // len(pool), best % len(pool)
    if float(left[i, j]) >= ROUNDING * energy:
        return None
    both = (spoken[i], j)
    factors = float(a[i, j]), float(b[i, j])
    return _blended(target, (pool[both[0]], pool[j]), (values[both[0]], values[j]), factors)


def _scaled(target: Tensor, source: Source, value: Tensor, factor: float) -> Arithmetic:
    for guess in (round(factor, 2), round(factor, 3), factor):
        if torch.equal(value * guess, target):
            return Sum((source,), (guess,))
    return Shift((source,), (torch.tensor([[factor]]),))


def _blended(
    target: Tensor, sources: tuple[Source, Source], values: tuple[Tensor, Tensor], factors: tuple[float, float]
) -> Arithmetic:
    a, b = factors
    # The stock node multiplies by strength and by 1 - strength; which of the two it was called with is unknown.
    guesses = [(round(a, n), 1.0 - round(a, n)) for n in (2, 3)] + [(1.0 - round(b, n), round(b, n)) for n in (2, 3)]
    for guess in guesses:
        if torch.equal(values[0] * guess[0] + values[1] * guess[1], target):
            return Sum(sources, guess)
    return Shift(sources, (torch.tensor([[a]]), torch.tensor([[b]])))


def angled(target: Tensor, blends: Sequence[Arithmetic]) -> Arithmetic | None:
    """A mix at an angle or of kept magnitude, where each chunk of ``target`` ``(T, D)`` is a blend by the same factors."""
    pairs = [blend for blend in blends if isinstance(blend, Shift) and len(blend.sources) == 2]
    if len(pairs) != len(blends) or not pairs or any(factor.numel() != 1 for pair in pairs for factor in pair.factors):
        return None
    a, b = (float(factor) for factor in pairs[0].factors)
    if any(abs(float(pair.factors[0]) - a) + abs(float(pair.factors[1]) - b) > 1e-4 for pair in pairs):
        return None
    for swap in (False, True):
        low = tuple(pair.sources[1 if swap else 0] for pair in pairs)
        high = tuple(pair.sources[0 if swap else 1] for pair in pairs)
        share = a if swap else b
        values = [torch.cat([source.static() for source in sources]) for sources in (low, high)]
        cosine = float((values[0] * values[1]).sum() / (values[0].norm() * values[1].norm()))
        angle = torch.acos(torch.tensor(cosine).clamp(-1, 1).double())
        slerp = float(torch.asin((share * angle.sin()).clamp(-1, 1)) / angle)
        for v in (slerp, share / (a + b)):
            for kind in ("slerp", "magnitude"):
                mixed = Mixed((*low, *high), round(v, 3) if abs(v - round(v, 3)) < 1e-4 else v, kind)  # type: ignore[arg-type]
                if _same(mixed.mix(values[0][None], values[1][None])[0], target):
                    return mixed
    return None


def weighting(target: Tensor, pools: Sequence[Sequence[Source]]) -> Arithmetic | None:
    """One prompt whose token rows were weighted, and perhaps scaled back to its mean, for ``target`` ``(T, D)``.

    Args:
        pools: the chunks that may stand in each of the equally long stretches of ``target``.
    """
    parts = target.split(target.shape[0] // len(pools), dim=0)
    found = [_row_factors(part, pool) for part, pool in zip(parts, pools, strict=True)]
    sources = tuple(pair[0] for pair in found if pair)
    if len(sources) < len(parts) or not any(source.prompt.concepts for source in sources):
        return None
    factors = torch.cat([pair[1] for pair in found if pair])
    plain = torch.cat([source.static() for source in sources])
    clean = _clean(factors)[:, None].to(plain)
    if len(sources) == 1 and torch.equal(plain * clean, target):
        return Sum(sources, (clean,))
    # The first token of a prompt has no weight: its factor is what everything was scaled by.
    weights = _clean(factors / factors[0])[:, None].to(plain) if factors[0] != 0 else clean
    for keeps in ("mean", "norm"):
        made = Reweighted(sources, weights, keeps)  # type: ignore[arg-type]
        if not bool((weights == 1).all()) and _same(made.weigh(plain[None])[0], target):
            return made
    if len(sources) > 1:
        return None
    return _leaning(target, sources[0], factors, pools[0]) or Shift(sources, (factors[:, None],))


def _row_factors(target: Tensor, pool: Sequence[Source]) -> tuple[Source, Tensor] | None:
    """A chunk of which every row of ``target`` ``(L, D)`` is a multiple, and the multiples ``(L,)``, float64."""
    wanted = target.double()
    energy = wanted.square().sum(-1)
    for source in pool:
        value = source.static().double()
        dots = (wanted * value).sum(-1)
        factors = dots / value.square().sum(-1).clamp_min(1e-30)
        if bool((energy - factors * dots <= ROUNDING * energy).all()):
            return source, factors
    return None


def _leaning(target: Tensor, source: Source, factors: Tensor, pool: Sequence[Source]) -> Arithmetic | None:
    row = source.static().double()
    for other in pool:
        if other.prompt.concepts:
            continue
        part = (other.static().double() * row).sum(-1) / row.square().sum(-1)
        leaning = (factors - 1) / part
        rounded = leaning.round(decimals=3)
        leans = (factors - factors.round(decimals=3)).abs() > CLEAN
        near = (leaning - rounded).abs() <= CLEAN * (2 + 1 / part.abs())
        if not bool(leans.any()) or not bool((near | ~leans).all()):
            continue
        fixed = torch.where(leans, torch.ones_like(factors), factors)
        made = Leaning((source, other), fixed[:, None], torch.where(leans, rounded, 0 * rounded)[:, None])
        if _same(made.rebuild(target[None], _static, _static)[0], target):
            return made
    return None


def row_by_row(target: Tensor, pool: Sequence[Source]) -> Arithmetic | None:
    """Every token row of a chunk ``(L, D)`` as its own combination of that row in some prompts."""
    pool = list(pool)[: min(MIXED[-1], target.shape[1] // 4)]
    if not any(source.prompt.concepts for source in pool):
        return None
    values = torch.stack([source.static() for source in pool]).double()
    wanted = target.double()
    factors = torch.zeros((target.shape[0], len(pool)), dtype=torch.float64)
    # The last rows know the whole prompt: if they cannot be explained, nothing needs to be tried before them.
    for t in reversed(range(target.shape[0])):
        found = _row(wanted[t], values[:, t])
        if found is None:
            return None
        factors[t] = found
    used = [index for index in range(len(pool)) if bool(factors[:, index].any())]
    if not any(pool[index].prompt.concepts for index in used):
        return None
    return Shift(tuple(pool[i] for i in used), tuple(factors[:, i : i + 1] for i in used))


def _row(wanted: Tensor, rows: Tensor) -> Tensor | None:
    """Factors ``(K,)`` with which rows ``(K, D)`` give a row ``(D,)``, as few of them as possible; None if none do."""
    energy, sizes = wanted @ wanted, rows.square().sum(-1)
    factors = torch.zeros(rows.shape[0], dtype=torch.float64)
    if energy == 0:
        return factors
    dots = rows @ wanted
    single = energy - dots.square() / sizes.clamp_min(1e-30) < ROUNDING * energy
    if bool(single.any()):
        first = int(single.nonzero()[0])
        factors[first] = dots[first] / sizes[first]
        return factors
    for count in dict.fromkeys(min(number, rows.shape[0]) for number in MIXED):
        chosen = _distinct(rows[:count], sizes[:count])
        solved = _solve(wanted, rows, chosen)
        if (wanted - solved @ rows[chosen]).square().sum() >= ROUNDING * energy:
            continue
        needed = chosen[(solved.abs() * sizes[chosen].sqrt()) > 1e-5 * energy.sqrt()]
        fewer = _solve(wanted, rows, needed)
        fits = (wanted - fewer @ rows[needed]).square().sum() < ROUNDING * energy
        factors[needed if fits else chosen] = fewer if fits else solved
        return factors
    return None


def _distinct(rows: Tensor, sizes: Tensor) -> Tensor:
    """Numbers of the rows that are not equal to an earlier one."""
    apart = sizes[:, None] + sizes - 2 * rows @ rows.T
    return (apart < 1e-11 * sizes).int().argmax(dim=1).eq(torch.arange(rows.shape[0])).nonzero()[:, 0]


def _solve(wanted: Tensor, rows: Tensor, chosen: Tensor) -> Tensor:
    return torch.linalg.lstsq(rows[chosen].T, wanted[:, None], driver="gelsd").solution[:, 0]


def noisy(target: Tensor, pool: Sequence[Source]) -> Arithmetic | None:
    """``g r`` plus white noise for a chunk ``(L, D)``: of deviation 1 - g, or of any where g is 1."""
    samples = target.numel()
    for source in pool:
        value = source.static()
        fitted = float((target * value).sum() / value.square().sum())
        near = [round(fitted + step, 2) for step in (0, -0.01, 0.01)]
        for factor in dict.fromkeys((*near, round(fitted, 3), 1.0)):
            noise = target - factor * value
            deviation = float(noise.std())
            along = float((noise * value).sum() / (noise.norm() * value.norm()).clamp_min(1e-30))
            rows = noise.std(dim=1) / max(deviation, 1e-30) - 1
            neighbors = float((noise[1:] * noise[:-1]).mean()) / max(deviation, 1e-30) ** 2
            white = (
                abs(along) < 5 / samples**0.5
                and abs(neighbors) < 5 / samples**0.5
                and float(rows.abs().max()) < 6 / (2 * target.shape[1]) ** 0.5
                and abs(float(noise.mean())) < 5 * deviation / samples**0.5
            )
            of_it = factor == 1.0 or abs(deviation - (1 - factor)) < 0.02 * (1 - factor)
            if white and of_it and factor > LEFT_OF_IT:
                return Shift((source,), (torch.tensor([[factor]]),))
    return None


def _clean(factors: Tensor) -> Tensor:
    """Factors, where they are near a widget's decimals, with those."""
    for decimals in (4, 3, 2):
        rounded = factors.round(decimals=decimals)
        factors = torch.where((factors - rounded).abs() < CLEAN * factors.abs().clamp_min(1), rounded, factors)
    return factors


def _same(made: Tensor, target: Tensor) -> bool:
    return float((made - target).double().square().sum()) < ROUNDING * float(target.double().square().sum())


def _static(source: Source) -> Tensor:
    return source.static()[None].double()


def nearest(target: Tensor, pool: Sequence[Source], count: int) -> list[Source]:
    """The chunks that most resemble a chunk ``(L, D)``, beyond what all of them have in common."""
    if len(pool) <= count:
        return list(pool)
    values = [source.static().reshape(-1) for source in pool]
    common = torch.stack(values[:count]).mean(dim=0)
    common = common / common.norm().clamp_min(1e-30)

    def beyond(value: Tensor) -> Tensor:
        return value - (value @ common) * common

    wanted = beyond(target.reshape(-1))
    scores = [float((beyond(value) @ wanted) ** 2 / beyond(value).square().sum().clamp_min(1e-30)) for value in values]
    order = sorted(range(len(pool)), key=lambda index: -scores[index])[:count]
    return [pool[index] for index in order]
