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
    """``g r`` or ``g1 r1 + g2 r2`` for a chunk ``(L, D)``; prompts with a concept come before plain ones."""
    spoken = [index for index, source in enumerate(pool) if source.prompt.concepts]
    if not pool:
        return None
    values = [source.static() for source in pool]
    basis = torch.stack([value.reshape(-1) for value in values]).double()
    wanted = target.reshape(-1).double()
    gram, dots, energy = basis @ basis.T, basis @ wanted, float(wanted @ wanted)
    for index in dict.fromkeys([*spoken, *range(len(pool))]):
        factor = float(dots[index] / gram[index, index])
        if energy - factor * float(dots[index]) < ROUNDING * energy:
            return _scaled(target, pool[index], values[index], factor)
    for first in (spoken, [index for index in range(len(pool)) if index not in spoken]):
        found = _best_pair(first, gram, dots, energy) if first else None
        if found:
            i, j, a, b = found
            return _blended(target, (pool[i], pool[j]), (values[i], values[j]), (a, b))
    return None


def _best_pair(first: list[int], gram: Tensor, dots: Tensor, energy: float) -> tuple[int, int, float, float] | None:
    """The two chunks, one of them of these, and their factors that leave least over; None if that is too much."""
    diagonal, rows = gram.diagonal(), torch.tensor(first)
    cross = gram[rows]
    determinant = diagonal[rows, None] * diagonal - cross.square()
    usable = determinant > 1e-9 * diagonal[rows, None] * diagonal
    determinant = determinant.where(usable, torch.ones_like(determinant))
    a = (dots[rows, None] * diagonal - dots * cross) / determinant
    b = (dots * diagonal[rows, None] - dots[rows, None] * cross) / determinant
    left = (energy - a * dots[rows, None] - b * dots).where(usable, torch.full_like(a, torch.inf))
    best = int(left.argmin())
    i, j = best // gram.shape[0], best % gram.shape[0]
    if float(left[i, j]) >= ROUNDING * energy:
        return None
    return first[i], j, float(a[i, j]), float(b[i, j])


def _scaled(target: Tensor, source: Source, value: Tensor, factor: float) -> Arithmetic:
    for guess in (round(factor, 2), round(factor, 3), factor):
        if torch.equal(value * guess, target):
            return Sum((source,), (guess,))
    return Shift((Sum((source,), (factor,)),))


def _blended(
    target: Tensor, sources: tuple[Source, Source], values: tuple[Tensor, Tensor], factors: tuple[float, float]
) -> Arithmetic:
    a, b = factors
    # The stock node multiplies by strength and by 1 - strength; which of the two it was called with is unknown.
    guesses = [(round(a, n), 1.0 - round(a, n)) for n in (2, 3)] + [(1.0 - round(b, n), round(b, n)) for n in (2, 3)]
    for guess in guesses:
        if torch.equal(values[0] * guess[0] + values[1] * guess[1], target):
            return Sum(sources, guess)
    return Shift((Sum((sources[0],), (a,)), Sum((sources[1],), (b,))))


def angled(target: Tensor, blends: Sequence[Arithmetic]) -> Arithmetic | None:
    """A mix at an angle or of kept magnitude, where each chunk of ``target`` ``(T, D)`` is a blend by the same factors."""
    pairs = [blend.terms for blend in blends if isinstance(blend, Shift) and len(blend.terms) == 2]
    factors = [[term.factors[0] for term in pair if isinstance(term, Sum)] for pair in pairs]
    if not pairs or len(pairs) != len(blends) or any(not isinstance(f, float) for both in factors for f in both):
        return None
    a, b = (float(factor) for factor in factors[0])  # type: ignore[arg-type]
    # Which of a chunk's two comes first is not the same for all of them.
    swapped = [abs(both[0] - a) + abs(both[1] - b) > 1e-4 for both in factors]  # type: ignore[operator]
    pairs = [pair[::-1] if swap else pair for pair, swap in zip(pairs, swapped, strict=True)]
    if any(abs(both[1] - a) + abs(both[0] - b) > 1e-4 for both, swap in zip(factors, swapped, strict=True) if swap):  # type: ignore[operator]
        return None
    for swap in (False, True):
        low = tuple(pair[1 if swap else 0].sources[0] for pair in pairs)
        high = tuple(pair[0 if swap else 1].sources[0] for pair in pairs)
        share = a if swap else b
        values = [torch.cat([source.static() for source in sources]) for sources in (low, high)]
        cosine = float((values[0] * values[1]).sum() / (values[0].norm() * values[1].norm()))
        angle = torch.acos(torch.tensor(cosine).clamp(-1, 1).double())
        slerp = float(torch.asin((share * angle.sin()).clamp(-1, 1)) / angle)
        for v in (slerp, share / (a + b)):
            for kind in ("slerp", "magnitude"):
                mixed = Mixed((*low, *high), round(v, 3) if abs(v - round(v, 3)) < 1e-4 else v, kind)
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
    if len(sources) < len(parts):
        return None
    factors = torch.cat([pair[1] for pair in found if pair])
    plain = torch.cat([source.static() for source in sources])
    clean = _clean(factors)[:, None].to(plain)
    if len(sources) == 1 and torch.equal(plain * clean, target):
        return Sum(sources, (clean,))
    renormalized = _renormalized(sources, factors)
    if renormalized and _same(renormalized.weigh(plain[None])[0], target):
        return renormalized
    if len(sources) > 1:
        return None
    return Shift((_leaning(sources[0], factors, pools[0]) or Sum(sources, (factors[:, None],)),))


def _renormalized(sources: tuple[Source, ...], factors: Tensor) -> Reweighted | None:
    """Factors ``(L,)`` as weights and what keeps the mean or the norm, times a widget's factor; None if they are not."""
    if not factors[-1]:
        return None
    plain = torch.cat([source.static() for source in sources])[None]
    # The last token of a prompt has no weight: its factor is what everything was scaled by.
    weights = _clean(factors / factors[-1])[:, None].to(plain)
    if bool((weights == 1).all()):
        return None
    for keeps in ("mean", "norm"):
        made = Reweighted(sources, weights, keeps)
        scale = float(factors[-1]) / float(made.kept(plain))
        if abs(scale - round(scale, 3)) < CLEAN * 2:
            return Reweighted(sources, weights, keeps, round(scale, 3))
    return None


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


def _leaning(source: Source, factors: Tensor, pool: Sequence[Source]) -> Leaning | None:
    """Factors ``(L,)`` of which some follow from how far a row leans to that of a plain prompt; None if none do."""
    if not factors[-1]:
        return None
    row, scale = source.static().double(), _clean(factors[-1:])
    factors = factors / scale
    leans = (factors - factors.round(decimals=3)).abs() > CLEAN
    if not bool(leans.any()):
        return None
    for other in pool:
        if other.prompt.concepts:
            continue
        part = (other.static().double() * row).sum(-1) / row.square().sum(-1)
        leaning = (factors - 1) / part
        rounded = leaning.round(decimals=3)
        near = leans & ((leaning - rounded).abs() <= CLEAN * (2 + 1 / part.abs()))
        # Rows before all weighted words say nothing; of the others, most must.
        if int(near.sum()) * 2 > int(leans.sum()):
            fixed = torch.where(near, torch.ones_like(factors), factors) * scale
            return Leaning((source, other), fixed[:, None], (torch.where(near, rounded, 0 * rounded) * scale)[:, None])
    return None


def row_by_row(target: Tensor, pool: Sequence[Source]) -> Arithmetic | None:
    """Every token row of a chunk ``(L, D)`` as its own combination of that row in some prompts."""
    pool = list(pool)[: min(MIXED[-1], target.shape[1] // 4)]
    if not pool:
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
    terms: list[Arithmetic] = []
    for index in used:
        source, mine = (pool[index],), factors[:, index]
        by_law = _renormalized(source, mine) or _leaning(source[0], mine, pool)
        terms.append(by_law or Sum(source, (mine[:, None],)))
    return Shift(tuple(terms))


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
                return Shift((Sum((source,), (factor,)),))
    return None


def _clean(factors: Tensor) -> Tensor:
    """Factors, where they are near a widget's decimals, with those."""
    for decimals in (4, 3, 2):
        rounded = factors.round(decimals=decimals)
        factors = torch.where((factors - rounded).abs() < CLEAN * factors.abs().clamp_min(1), rounded, factors)
    return factors


def _same(made: Tensor, target: Tensor) -> bool:
    return float((made - target).double().square().sum()) < ROUNDING * float(target.double().square().sum())


def nearest(target: Tensor, pool: Sequence[Source], count: int, marked: Sequence[Source] = ()) -> list[Source]:
    """The chunks that most resemble a chunk ``(L, D)``, or what is left of it.

    Half of them by what is beyond the marked ones, and beyond what all have in common; the others by what is left when the
    first of those is taken away, too. So the second prompt of a blend is found among many that resemble the first.
    """
    if len(pool) <= count:
        return list(pool)
    values = [source.static().reshape(-1) for source in pool]
    common = torch.stack(values[:count]).mean(dim=0)
    wanted, away = target.reshape(-1), [common, *(source.static().reshape(-1) for source in marked)]
    chosen: list[int] = []
    for number in (count // 2, count):
        basis = torch.linalg.qr(torch.stack(away, dim=1)).Q

        def beyond(value: Tensor, basis: Tensor = basis) -> Tensor:
            return value - basis @ (basis.T @ value)

        left = beyond(wanted)
        scores = [float((rest @ left) ** 2 / rest.square().sum().clamp_min(1e-30)) for rest in map(beyond, values)]
        order = sorted(range(len(pool)), key=lambda index: -scores[index])
        chosen += [index for index in order if index not in chosen][: number - len(chosen)]
        away.append(values[chosen[0]])
    return [pool[index] for index in chosen]
