"""The comparison's tables and gates, from scores and costs of every arm over its points."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .compact_report import MEASURES
from .compare_arms import Arm, bytes_at_sd15
from .compare_pictures import Drawn
from .compare_scores import identity_at_prompt, pareto_front, time_to
from .quality_report import ArmScores
from .report import gate, table
from .statistics import Interval, bootstrap

RATIO_GATE, EQUAL_PROMPT = 30.0, 0.02
GATED = ("textual_inversion", "dreambooth")
"""Methods than which E4T should be so many times faster."""
SHARES = (1.0, 0.95)
"""Of a sibling's final identity: the second says whether its last steps brought little."""
IDENTITY, LIKENESS, PROMPT = "NAMED", "likeness", "PROMPT"
BOTH = "both judges"
Key = tuple[str, int]


@dataclass(frozen=True)
class Result:
    """Some arms on the same individuals.

    Attributes:
        arms: in the table's order.
        drawn: (name of an arm, steps) -> what was drawn of each individual.
        scores: judge -> the same key -> scores.
    """

    arms: Sequence[Arm]
    drawn: Mapping[Key, Sequence[Drawn]]
    scores: Mapping[str, Mapping[Key, ArmScores]]

    @property
    def count(self) -> int:
        """Of individuals."""
        return len(next(iter(self.drawn.values())))

    @property
    def judges(self) -> list[str]:
        """Each of them, and the mean of both."""
        return [*self.scores, BOTH]

    @property
    def learned(self) -> list[Arm]:
        """The arms that learn."""
        return [arm for arm in self.arms if arm.method]

    def arm(self, method: str) -> Arm:
        """The first one of a method.

        Raises:
            StopIteration: there is none.
        """
        return next(arm for arm in self.arms if arm.method == method)

    def curve(self, judge: str, arm: Arm, measure: str, w: np.ndarray) -> np.ndarray:
        """A measure at every point of an arm, ``(R, P)``, for weights ``(R, individuals)``."""
        judges = list(self.scores) if judge == BOTH else [judge]
        points = [[MEASURES[measure](self.scores[one][arm.name, steps], w) for steps in arm.points] for one in judges]
        return np.mean(points, axis=0).T

    def value(self, judge: str, arm: Arm, measure: str) -> list[float]:
        """The same over all individuals, ``P`` numbers."""
        return [float(v) for v in self.curve(judge, arm, measure, np.ones((1, self.count)))[0]]

    def cost(self, arm: Arm, what: str) -> list[float]:
        """Mean "seconds", "passes" or "bytes" at every point."""
        return [float(np.mean([getattr(one, what) for one in self.drawn[arm.name, steps]])) for steps in arm.points]

    def at_chosen(self, arm: Arm, values: Sequence[float]) -> float:
        """The value of the point that stands in the table."""
        return values[arm.points.index(arm.chosen)]


@dataclass(frozen=True)
class Speed:
    """How much sooner E4T is as like as a sibling.

    Attributes:
        identity: of the sibling, that is to be reached.
        own, ours: when the sibling, and E4T, reach it; infinity where never.
        ratio: own / ours, 0 where E4T never does.
    """

    identity: float
    own: float
    ours: float
    ratio: Interval


def speed(
    result: Result, judge: str, sibling: Arm, what: str = "seconds", share: float = 1.0, measure: str = IDENTITY
) -> Speed:
    """When both reach a share of what the sibling has at the point that was chosen for it.

    Args:
        what: the cost, "seconds" or "passes".
    """
    ours, until = result.arm("e4t"), sibling.points.index(sibling.chosen) + 1
    times, our_times = result.cost(sibling, what)[:until], result.cost(ours, what)

    def parts(w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        curve = result.curve(judge, sibling, measure, w)[:, :until]
        level = curve[:, -1] - (1 - share) * np.abs(curve[:, -1])
        return level, time_to(level, times, curve), time_to(level, our_times, result.curve(judge, ours, measure, w))

    def ratio(w: np.ndarray) -> np.ndarray:
        _, own, mine = parts(w)
        return own / mine

    level, own, mine = (float(part[0]) for part in parts(np.ones((1, result.count))))
    return Speed(level, own, mine, bootstrap(ratio, result.count))


def advantage(result: Result, judge: str, sibling: Arm) -> Interval:
    """E4T's identity where it obeys prompts as well as a sibling does, less the sibling's; NaN where it nowhere does."""
    ours, at = result.arm("e4t"), sibling.points.index(sibling.chosen)

    def difference(w: np.ndarray) -> np.ndarray:
        level = result.curve(judge, sibling, PROMPT, w)[:, at] - EQUAL_PROMPT
        mine = identity_at_prompt(level, result.curve(judge, ours, PROMPT, w), result.curve(judge, ours, IDENTITY, w))
        return mine - result.curve(judge, sibling, IDENTITY, w)[:, at]

    return bootstrap(difference, result.count)


def front(result: Result) -> set[str]:
    """Names of the arms than which none is better in identity and in prompts, both judges together."""
    arms = result.learned
    points = [
        (
            result.at_chosen(arm, result.value(BOTH, arm, IDENTITY)),
            result.at_chosen(arm, result.value(BOTH, arm, PROMPT)),
        )
        for arm in arms
    ]
    return {arms[number].name for number in pareto_front(points)}


def size(taken: float) -> str:
    """Bytes as a person reads them."""
    for unit, one in (("GB", 1e9), ("MB", 1e6)):
        if taken >= one:
            return f"{taken / one:.1f} {unit}"
    return f"{taken / 1e3:.0f} kB"


def main_table(result: Result, with_sizes: bool = True) -> tuple[list[str], list[list[str]]]:
    """Scores of both judges, cost and size of every arm at its chosen point."""
    judges, best = list(result.scores), front(result)
    header = ["method", "steps", *(IDENTITY, LIKENESS, PROMPT), "s", "passes", "size here", "at SD 1.5", "front"]
    rows = []
    for arm in result.arms:
        scores = [
            ", ".join(f"{result.at_chosen(arm, result.value(judge, arm, m)):.2f}" for judge in judges)
            for m in (IDENTITY, LIKENESS, PROMPT)
        ]
        seconds, passes, taken = (result.at_chosen(arm, result.cost(arm, c)) for c in ("seconds", "passes", "bytes"))
        costs = [f"{seconds:.1f}", f"{passes:.0f}", size(taken)] if arm.method else ["", "", ""]
        true = size(bytes_at_sd15(arm.method)) if with_sizes and arm.method else ""
        steps = str(arm.chosen) if arm.method else ""
        rows.append([arm.name, steps, *scores, *costs, true, "yes" if arm.name in best else ""])
    return header, rows


def speed_table(result: Result) -> tuple[list[str], list[list[str]]]:
    """Time to equal identity, for both judges and both kinds of cost."""
    header = [
        "E4T as like as",
        "judge",
        "share",
        IDENTITY,
        "its s",
        "E4T's s",
        "ratio",
        "ratio in passes",
        "by likeness",
    ]
    rows = []
    for arm in _siblings(result):
        for judge in result.scores:
            for share in SHARES:
                found, passes = speed(result, judge, arm, "seconds", share), speed(result, judge, arm, "passes", share)
                like = speed(result, judge, arm, "seconds", share, LIKENESS)
                rows.append([
                    arm.name, judge, f"{share:g}", f"{found.identity:.2f}", f"{found.own:.1f}", _seconds(found.ours),
                    _ratio(found.ratio), _ratio(passes.ratio), _ratio(like.ratio),
                ])  # fmt: skip
    return header, rows


def _siblings(result: Result) -> list[Arm]:
    return [arm for arm in result.learned if arm.method not in ("e4t", "hypernetwork") and arm.photos == 1]


def _seconds(value: float) -> str:
    return f"{value:.1f}" if np.isfinite(value) else "never"


def _ratio(found: Interval) -> str:
    return f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"


def gates(result: Result) -> list[bool]:
    """Prints whether each gate is met."""
    met = []
    for arm in _siblings(result):
        for judge in result.scores:
            more = advantage(result, judge, arm)
            what = f"{judge}: {IDENTITY} above {arm.name} at equal {PROMPT}"
            met.append(gate(what, more.value, least=0.0, detail=str(more)))
    for arm in _siblings(result):
        if arm.method in GATED:
            for judge in result.scores:
                found = speed(result, judge, arm)
                what = f"{judge}: times faster than {arm.name} to its final {IDENTITY}"
                met.append(gate(what, found.ratio.value, least=RATIO_GATE, detail=_ratio(found.ratio)))
    return met


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a terminal."""
    return table(header, rows)


def write_points(results: Sequence[Result], path: Path) -> None:
    """Every point of every arm as CSV, a line for each judge and for both."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        measures = list(MEASURES)
        writer.writerow(
            [
                "arm",
                "method",
                "photos",
                "individuals",
                "steps",
                "chosen",
                "judge",
                *measures,
                "seconds",
                "passes",
                "bytes",
            ]
        )
        for result in results:
            for arm in result.arms:
                costs = [result.cost(arm, what) for what in ("seconds", "passes", "bytes")]
                for judge in result.judges:
                    values = [result.value(judge, arm, measure) for measure in measures]
                    for at, steps in enumerate(arm.points):
                        row = [round(column[at], 4) for column in (*values, *costs)]
                        named = [arm.name, arm.method, arm.photos, result.count, steps, steps == arm.chosen, judge]
                        writer.writerow([*named, *row])


def write_table(header: Sequence[str], rows: Sequence[Sequence[str]], path: Path) -> None:
    """A table as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
