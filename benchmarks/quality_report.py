"""The quality benchmark's table, intervals and gates, from scores per identity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .report import gate, table
from .scoring import Scores, Sums
from .statistics import Interval, bootstrap, gap_closed, weighted_ratio

GAP_GATE, GAP_LOW_GATE, CLASS_GATE, MEAN_GATE, LEAK_GATE = 0.60, 0.50, 0.80, 0.85, 0.15
TUNED = ("e4t", "e4t mask")


def _per_identity(sums: Sums, identities: int) -> Sums:
    return Sums(sums.value.reshape(identities, -1).sum(1), sums.weight.reshape(identities, -1).sum(1))


@dataclass(frozen=True)
class ArmScores:
    """One arm's scores summed within each identity, so that resamples of identities are weighted sums."""

    named: Sums
    geometry: Sums
    marks: Sums
    prompt: dict[str, Sums]
    leak: Sums
    likeness: Sums

    @classmethod
    def by_identity(cls, scores: Scores, identities: int) -> ArmScores:
        """From a row for each picture, ordered by identity."""

        def whole(sums: Sums) -> Sums:
            return _per_identity(sums, identities)

        likeness = Sums(scores.likeness, np.ones_like(scores.likeness))
        return cls(
            whole(scores.named),
            whole(scores.unnamed.geometry),
            whole(scores.unnamed.marks),
            {edit: whole(sums) for edit, sums in scores.prompt.items()},
            whole(scores.leak),
            whole(likeness),
        )

    def named_ratio(self, w: np.ndarray) -> np.ndarray:
        return weighted_ratio(w, self.named.value, self.named.weight)

    def unnamed_score(self, w: np.ndarray) -> np.ndarray:
        parts = [1 - weighted_ratio(w, part.value, part.weight) for part in (self.geometry, self.marks)]
        return np.mean(parts, axis=0)

    def class_score(self, w: np.ndarray, edit: str) -> np.ndarray:
        return weighted_ratio(w, self.prompt[edit].value, self.prompt[edit].weight)

    def prompt_mean(self, w: np.ndarray) -> np.ndarray:
        return np.mean([self.class_score(w, edit) for edit in self.prompt], axis=0)

    def likeness_mean(self, w: np.ndarray) -> np.ndarray:
        return weighted_ratio(w, self.likeness.value, self.likeness.weight)

    def leak_ratio(self, w: np.ndarray) -> np.ndarray:
        return weighted_ratio(w, self.leak.value, self.leak.weight)


def gap(arms: dict[str, ArmScores], name: str, count: int) -> Interval:
    """Gap closed in NAMED, every part recomputed in each resample."""
    floors = [arms["other"], arms["coarse"]]
    return bootstrap(
        lambda w: gap_closed(arms[name].named_ratio(w), [f.named_ratio(w) for f in floors], arms["vae"].named_ratio(w)),
        count,
    )


def report(
    found: dict[str, dict[str, ArmScores]], arms: list[str]
) -> tuple[dict[str, dict[str, dict[str, float]]], list[bool]]:
    """Prints everything; returns judge -> arm -> figures, and which gates are met."""
    figures: dict[str, dict[str, dict[str, float]]] = {}
    results: list[bool] = []
    for judge, scored in found.items():
        count = len(scored["coarse"].named.value)
        one = np.ones((1, count))
        coarse_leak = float(scored["coarse"].leak_ratio(one)[0])
        rows, figures[judge] = [], {}
        for arm in arms:
            own = scored[arm]
            closed = gap(scored, arm, count)
            values = {
                "NAMED": float(own.named_ratio(one)[0]),
                "gap closed": closed.value,
                "gap low": closed.low,
                "gap high": closed.high,
                "UNNAMED": float(own.unnamed_score(one)[0]),
                **{edit: float(own.class_score(one, edit)[0]) for edit in own.prompt},
                "PROMPT": float(own.prompt_mean(one)[0]),
                "LEAK": float(own.leak_ratio(one)[0]) - coarse_leak,
                "likeness": float(own.likeness_mean(one)[0]),
            }
            figures[judge][arm] = {key: round(value, 4) for key, value in values.items()}
            shown = [f"{values[k]:.2f}" for k in values if not k.startswith("gap")]
            rows.append([arm, shown[0], str(closed), *shown[1:]])
        header = ["arm", "NAMED", "gap closed", "UNNAMED", *scored["coarse"].prompt, "PROMPT", "LEAK", "likeness"]
        print(f"\n{judge}\n{table(header, rows)}\n")
        if "e4t mask" in scored and "crossed" in scored:
            lost = bootstrap(lambda w, s=scored: s["e4t mask"].named_ratio(w) - s["crossed"].named_ratio(w), count)  # type: ignore[misc]
            results.append(
                gate(f"{judge}: NAMED lost by crossing the domains, lower limit", lost.low, above=0, detail=f"{lost}")
            )
        for arm in TUNED:
            if arm in scored:
                results += gates(f"{judge}, {arm}", scored, arm, count)
    print(f"\n{sum(results)} of {len(results)} gates met" if results else "\nno gates: no tuned arm was drawn")
    return figures, results


def gates(judge: str, scored: dict[str, ArmScores], arm: str, count: int) -> list[bool]:
    """The gates of a tuned arm, as far as the arms they need were drawn."""
    tuned, coarse = scored[arm], scored["coarse"]
    closed = gap(scored, arm, count)
    results = [
        gate(f"{judge}: NAMED gap closed", closed.value, least=GAP_GATE),
        gate(f"{judge}: NAMED gap closed, lower limit", closed.low, least=GAP_LOW_GATE),
    ]
    for other in ("oracle", "encoder"):
        if other in scored:
            better = bootstrap(lambda w, o=scored[other]: tuned.unnamed_score(w) - o.unnamed_score(w), count)  # type: ignore[misc]
            results.append(
                gate(f"{judge}: UNNAMED above {other}, lower limit", better.low, above=0, detail=f"difference {better}")
            )
    for edit in tuned.prompt:
        kept = bootstrap(lambda w, e=edit: tuned.class_score(w, e) / coarse.class_score(w, e), count)  # type: ignore[misc]
        results.append(
            gate(f"{judge}: {edit} as share of the coarse arm", kept.value, least=CLASS_GATE, detail=f"{kept}")
        )
    mean = bootstrap(lambda w: tuned.prompt_mean(w) / coarse.prompt_mean(w), count)
    results.append(gate(f"{judge}: PROMPT as share of the coarse arm", mean.value, least=MEAN_GATE, detail=f"{mean}"))
    leak = bootstrap(lambda w: tuned.leak_ratio(w) - coarse.leak_ratio(w), count)
    results.append(gate(f"{judge}: leak", leak.value, most=LEAK_GATE, detail=f"{leak}"))
    return results
