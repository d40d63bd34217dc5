"""``python -m benchmarks.compare_grid``: a fair setting for each method, chosen before the comparison.

E4T and each of its siblings is learned from one photo of each of 4 validation individuals, at 4 or 5 learning rates that are
evenly spaced on a logarithmic scale. First for 60 steps (E4T: 5) at each of them; then for 240 (15) at the best of them and at its
neighbors. A batch is 4 samples, of E4T 16. Six prompts are drawn for each individual: plain, a style, a background, an accessory,
and two compounds.

The rule, set before anything was measured: of all lines of a method, the one with the highest harmonic mean of NAMED and PROMPT
(each the mean of both judges) is what the method is compared with, its steps included. A rate at the end of its list that is chosen is
said, so that the list can be continued. Lines are kept in benchmarks/compare_grid.csv; pictures in runs/compare, so that an
interrupted run goes on.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from commands.progress import Progress
from e4t_core.methods.registered import TITLES

from .compact_report import MEASURES
from .compare_arms import LOG, TRIALS, Arm, Trial, Tried, chosen, read_log
from .compare_pictures import ROOT, Painter
from .report import table

SPLIT, INDIVIDUALS = "validation", 4
ASKED = (0, 1, 3, 6, 9, 10)
COLUMNS = ("method", "rate", "steps", "individuals", "NAMED", "PROMPT", "score", "seconds", "chosen")


def arm(trial: Trial, rate: float, steps: int) -> Arm:
    """A sibling at a rate, after one number of steps."""
    return Arm(TITLES[trial.method], trial.method, trial.settings(rate), (steps,), steps)


def tried(painter: Painter, trial: Trial, rate: float, steps: int) -> Tried:
    """A line of the log, from what is kept."""
    drawn = [painter.drawn(person, arm(trial, rate, steps))[steps] for person in painter.people]
    found = painter.scores({"": [one.pictures for one in drawn]}, painter.people)
    one = np.ones((1, len(painter.people)))
    named, prompt = (
        float(np.mean([MEASURES[measure](scores[""], one) for scores in found.values()]))
        for measure in ("NAMED", "PROMPT")
    )
    seconds = float(np.mean([one.seconds for one in drawn]))
    return Tried(trial.method, rate, steps, len(painter.people), round(named, 4), round(prompt, 4), round(seconds, 1))


def longer(lines: Sequence[Tried], rates: Sequence[float]) -> list[float]:
    """The rates that go on to the long run: the best of the short ones, and its neighbors."""
    best = rates.index(max(lines, key=lambda one: one.score).rate)
    return list(rates[max(best - 1, 0) : best + 2])


def write_log(lines: Sequence[Tried], path: Path = LOG) -> None:
    """The log as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for one in lines:
            is_chosen = one == chosen(lines, one.method)
            writer.writerow((
                one.method, one.rate, one.steps, one.individuals, one.named, one.prompt, round(one.score, 4), one.seconds,
                "yes" if is_chosen else "",
            ))  # fmt: skip


def run(painter: Painter, trials: Sequence[Trial], lines: dict[tuple[str, float, int], Tried], until: float) -> bool:
    """Adds the trials' lines; whether all of them were made before ``until``, by ``time.monotonic()``."""

    def add(wanted: Sequence[tuple[Trial, float, int]], desc: str) -> bool:
        for trial, rate, steps in Progress(wanted, desc=desc):
            for person in painter.people:
                if time.monotonic() > until and not painter.path(person, arm(trial, rate, steps)).exists():
                    return False
                painter.drawn(person, arm(trial, rate, steps))
            lines[trial.method, rate, steps] = tried(painter, trial, rate, steps)
        return True

    if not add([(trial, rate, trial.runs[0]) for trial in trials for rate in trial.rates], "short runs"):
        return False
    further = [
        (trial, rate, trial.runs[1])
        for trial in trials
        for rate in longer([lines[trial.method, rate, trial.runs[0]] for rate in trial.rates], trial.rates)
    ]
    return add(further, "long runs")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--individuals", type=int, default=INDIVIDUALS)
    parser.add_argument("--methods", help="comma-separated names; default: all")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; the same command goes on")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = options.methods.split(",") if options.methods else [trial.method for trial in TRIALS]
    unknown = sorted(set(names) - {trial.method for trial in TRIALS})
    if unknown:
        parser.error(f"there is no method {unknown[0]!r}; there are: {', '.join(s.method for s in TRIALS)}")
    until = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    painter = Painter(SPLIT, options.individuals, ASKED, ROOT)
    lines = {(one.method, one.rate, one.steps): one for one in read_log() if one.method not in names}
    trials = [trial for trial in TRIALS if trial.method in names]

    is_whole = run(painter, trials, lines, until)
    order = [trial.method for trial in TRIALS]
    kept = sorted(lines.values(), key=lambda one: (order.index(one.method), one.steps, one.rate))
    rows = []
    for one in kept:
        mark = "chosen" if one == chosen(kept, one.method) else ""
        shown = f"{one.named:.3f}", f"{one.prompt:.3f}", f"{one.score:.3f}", f"{one.seconds:.1f}"
        rows.append((one.method, f"{one.rate:g}", one.steps, one.individuals, *shown, mark))
    print(table(COLUMNS, rows))
    for trial in trials:
        own = [one for one in kept if one.method == trial.method]
        if own and (best := chosen(own, trial.method)).rate in (trial.rates[0], trial.rates[-1]):
            print(f"{trial.method}: {best.rate:g} is at the end of its list")
    if not is_whole:
        print("not finished: the same command goes on")
        return 1
    write_log(kept)
    print(f"wrote {LOG.name}: commit it")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
