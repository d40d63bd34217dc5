"""``python -m benchmarks.ablations``: what each part of E4T is for (the paper's figure 4b), one switch thrown in each arm.

The first validation individuals, with the quality benchmark's photos, prompts, noise, scores and judges. Arms on the shipped domain are
compared with "full", which is the quality benchmark's "e4t" bit for bit. Arms that need another pre-training are compared with
"short": all of those, "short" included, are pre-trained for ``--steps`` steps in place of the shipped domain's 3000. 600 of them
take 9 minutes of one CPU core, a HyperNetwork's 17. Differences are paired, with 95 % intervals from 10,000 bootstrap resamples of
individuals; of few individuals such intervals are rather too narrow. Then the paper's sentences, one by one.

Pictures and checkpoints are kept in runs/ablations: an interrupted run goes on, and ``--minutes`` ends one in time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from .ablation_arms import ARMS, CLAIMS, FROZEN, FULL, Ablation
from .ablation_domains import FOLDER, STEPS, Unfinished
from .ablation_pictures import DOMAIN, Painter
from .ablation_plot import plot
from .quality import judged
from .quality_report import ArmScores
from .report import table
from .statistics import Interval, bootstrap

EDITS = ("style", "background", "accessory", "zoom")
Measure = Callable[[ArmScores, np.ndarray], np.ndarray]
MEASURES: Mapping[str, Measure] = {
    "NAMED": ArmScores.named_ratio,
    "UNNAMED": ArmScores.unnamed_score,
    "likeness": ArmScores.likeness_mean,
    **{edit: (lambda scores, w, edit=edit: scores.class_score(w, edit)) for edit in EDITS},  # type: ignore[misc]
    "PROMPT": ArmScores.prompt_mean,
    "leak": ArmScores.leak_ratio,
}
"""Of resamples ``(R, individuals)``. "leak" is how often the photo's background or accessory appears, whatever the cause."""
LEAST = 4
"""Individuals from which on an interval is believed."""
Judged = Mapping[str, Mapping[str, ArmScores]]
"""judge -> arm -> scores."""


def difference(scored: Mapping[str, ArmScores], arm: Ablation, measure: str) -> Interval:
    """The arm less the one beside it, individuals paired."""
    one, other, of = scored[arm.name], scored[arm.beside], MEASURES[measure]
    return bootstrap(lambda w: of(one, w) - of(other, w), len(one.named.value))


def verdict(differences: Sequence[Interval], people: int) -> str:
    """Whether a measure falls, as every judge's interval says; of very few individuals an interval says nothing."""
    if people < LEAST:
        return f"fewer than {LEAST} individuals"
    if all(found.high < 0 for found in differences):
        return "holds"
    if all(found.low > 0 for found in differences):
        return "does not hold: it rises"
    if all(found.value < 0 for found in differences):
        return "falls, but not clearly"
    return "cannot be seen"


def compared(scored: Judged, arms: Sequence[Ablation]) -> list[Ablation]:
    """The arms that have one to be compared with."""
    drawn = next(iter(scored.values()))
    return [arm for arm in arms if arm.beside in drawn and arm.beside != arm.name]


def tables(scored: Judged, arms: Sequence[Ablation]) -> list[str]:
    """Scores and differences for each judge."""
    found = []
    for judge, of in scored.items():
        one = np.ones((1, len(next(iter(of.values())).named.value)))
        rows = [
            (arm.name, *(f"{float(MEASURES[name](of[arm.name], one)[0]):.2f}" for name in MEASURES)) for arm in arms
        ]
        found.append(table((judge, *MEASURES), rows))
        shown = ("NAMED", "UNNAMED", "likeness", "PROMPT", "leak")
        lost = [
            (f"{arm.name} - {arm.beside}", *(difference(of, arm, name) for name in shown))
            for arm in compared(scored, arms)
        ]
        found.append(table((judge, *shown), lost))
    return found


def claims(scored: Judged, arms: Sequence[Ablation]) -> str:
    """The paper's sentences about these arms, and what is seen of them here."""
    by_name = {arm.name: arm for arm in compared(scored, arms)}
    rows = []
    for claim in CLAIMS:
        if claim.arm in by_name:
            found = [difference(of, by_name[claim.arm], claim.measure) for of in scored.values()]
            people = len(next(iter(scored.values()))[claim.arm].named.value)
            rows.append((claim.text, claim.measure, *found, verdict(found, people)))
    return table(("the paper", "measure", *scored, "here"), rows)


def figures(scored: Judged, arms: Sequence[Ablation]) -> dict[str, dict[str, dict[str, float]]]:
    """judge -> arm -> measure -> value, for the file beside the picture."""
    return {
        judge: {
            arm.name: {
                name: round(float(of_scores(of[arm.name], np.ones((1, len(of[arm.name].named.value))))[0]), 4)
                for name, of_scores in MEASURES.items()
            }
            for arm in arms
        }
        for judge, of in scored.items()
    }


def chosen(names: str | None) -> list[Ablation]:
    """Arms by name, comma-separated; those beside them are there always.

    Raises:
        ValueError: there is no such arm.
    """
    if names is None:
        return [arm for arm in ARMS.values() if arm not in FROZEN]
    wanted = names.split(",")
    unknown = [name for name in wanted if name not in ARMS]
    if unknown:
        raise ValueError(f"there is no arm {unknown[0]!r}; there are: {', '.join(ARMS)}")
    needed = {*wanted, *(ARMS[name].beside for name in wanted)}
    return [arm for name, arm in ARMS.items() if name in needed]


def main() -> int:
    """The command; its exit status is 1 if ``--minutes`` were not enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("validation", "held-out"), default="validation")
    parser.add_argument("--identities", type=int, default=8)
    parser.add_argument("--arms", help="comma-separated names; default: all but those of figure 6")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the shortened pre-trainings")
    parser.add_argument("--minutes", type=float, help="begin nothing more after so many; the same command goes on")
    parser.add_argument("--out", type=Path, default=FOLDER / "figure4b.png")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        arms = chosen(options.arms)
    except ValueError as error:
        parser.error(str(error))
    until = float("inf") if options.minutes is None else time.monotonic() + 60 * options.minutes
    painter = Painter(options.split, options.identities, options.steps, until)
    missing = ""
    try:
        painter.draw(arms)
    except Unfinished as error:
        missing = str(error)
        arms = [arm for arm in arms if painter.is_drawn(arm)]
        if ARMS[FULL] not in arms:
            print(missing)
            return 1
    pictures = {arm.name: [painter.drawn(arm, person).pictures for person in painter.people] for arm in arms}
    scored = judged(painter.people, pictures, options.split, strangers=painter.strangers)
    print(f"{options.identities} {options.split} {DOMAIN}s; “short”: {options.steps} steps of pre-training\n")
    print("\n\n".join([*tables(scored, arms), claims(scored, arms)]))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(figures(scored, arms), indent=1), encoding="utf-8")
    plot(figures(scored, arms), arms, options.out)
    print(f"\n{options.out}: identity against prompt; {options.out.with_suffix('.json').name}: the scores")
    if missing:
        print(f"These are the arms that are complete. {missing}")
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
