"""``python -m benchmarks.learning``: what makes E4T learn more of a photo: photos, steps, a falling rate, noise levels.

Faces of a split, learned by the mini world's networks as they were trained (which are ten times as fast as in ComfyUI, see
``compare``), at the rate that ``compare_grid`` chose for these, and drawn in the 11 prompts of ``quality``; no masks. Each arm is the
shipped preset but for what its name says, and is compared with "one photo". Differences are paired, with 95 % intervals from
resamples of individuals. For each judge:

* NAMED: what words can name of the person; geometry and marks: what they cannot; 1 is exact, 0 as far off as a stranger;
* likeness: the identity network's cosine with the photo; PROMPT: edits that were asked for; leak: background or accessory of the
  photo that nobody asked for;
* seconds: of one core, from the photos to the concept.

Pictures are kept in runs/learning, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from commands.progress import Progress
from e4t_core.methods.e4t.settings import TuningSettings

from . import host
from .compare import PROMPTS
from .compare_arms import PRESET_STEPS, Arm, e4t_arm, read_log
from .compare_pictures import Painter
from .picture_sheet import sheet
from .quality_report import ArmScores
from .report import table
from .statistics import Interval, bootstrap, weighted_ratio

ROOT = host.ROOT / "runs" / "learning"
PLAIN = "one photo"
ON_SHEET, SHOWN = 4, (0, 3)


@dataclass(frozen=True)
class LowNoise(TuningSettings):
    """Low noise levels more often, which no setting of the product does.

    Attributes:
        power: the timestep is this power of where a sample is in its batch, above 1.
    """

    power: float = 1.0

    def level(self, share: float) -> float:
        return float(share**self.power)


def arms() -> dict[str, Arm]:
    """All arms by name."""
    ours = replace(e4t_arm(read_log()), points=(PRESET_STEPS,), chosen=PRESET_STEPS)
    preset = ours.settings
    assert isinstance(preset, TuningSettings)
    plain = replace(preset, more_steps=0.0, high_noise=0.0)

    def arm(photos: int = 1, steps: int = PRESET_STEPS, **changes: Any) -> Arm:
        return replace(ours, photos=photos, points=(steps,), chosen=steps, settings=replace(plain, **changes))

    low = {
        f"low noise, power {power:g}": replace(ours, settings=LowNoise(**vars(plain), power=power))
        for power in (1.5, 2.0)
    }
    return {
        PLAIN: arm(),
        **low,
        **{f"high noise {power:g}": arm(high_noise=power) for power in (0.5, 1.0, 2.0, 3.0)},
        "30 steps": arm(steps=30),
        "30 steps, falling": arm(steps=30, rate_decay=True),
        "30 steps, falling, high noise 1": arm(steps=30, rate_decay=True, high_noise=1.0),
        **{f"{photos} photos, steps of one": arm(photos) for photos in (2, 3, 5)},
        "5 photos, 45 steps": arm(5, 45),
        **{f"{photos} photos": arm(photos, more_steps=0.5) for photos in (2, 3, 5)},
        "5 photos, high noise 1": arm(5, more_steps=0.5, high_noise=1.0),
    }


def _unnamed(part: str) -> Callable[[ArmScores, np.ndarray], np.ndarray]:
    def score(scores: ArmScores, w: np.ndarray) -> np.ndarray:
        sums = getattr(scores, part)
        return 1 - weighted_ratio(w, sums.value, sums.weight)

    return score


MEASURES: Mapping[str, Callable[[ArmScores, np.ndarray], np.ndarray]] = {
    "NAMED": ArmScores.named_ratio,
    "geometry": _unnamed("geometry"),
    "marks": _unnamed("marks"),
    "likeness": ArmScores.likeness_mean,
    "PROMPT": ArmScores.prompt_mean,
    "leak": ArmScores.leak_ratio,
}
"""Of resamples ``(R, individuals)``."""


def difference(of: Mapping[str, ArmScores], name: str, measure: str) -> Interval:
    """An arm less one photo, individuals paired."""
    score, one, other = MEASURES[measure], of[name], of[PLAIN]
    return bootstrap(lambda w: score(one, w) - score(other, w), len(one.named.value))


def tables(scored: Mapping[str, Mapping[str, ArmScores]], seconds: Mapping[str, float]) -> list[str]:
    """For each judge the scores, and the differences from one photo."""
    found = []
    for judge, of in scored.items():
        count = len(of[PLAIN].named.value)
        one = np.ones((1, count))
        rows = [
            (name, *(f"{float(measure(scores, one)[0]):.3f}" for measure in MEASURES.values()), f"{seconds[name]:.0f}")
            for name, scores in of.items()
        ]
        found.append(table((judge, *MEASURES, "seconds"), rows))
        less = [
            (f"{name} - {PLAIN}", *(difference(of, name, measure) for measure in MEASURES))
            for name in of
            if name != PLAIN
        ]
        if less:
            found.append(table((judge, *MEASURES), less))
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("validation", "held-out"), default="validation")
    parser.add_argument("--identities", type=int, default=8)
    parser.add_argument("--arms", help="separated by semicolons; default: all")
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE", help="draws the first four there, two prompts for each arm"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    known = arms()
    wanted = options.arms.split(";") if options.arms else list(known)
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"there is no arm {unknown[0]!r}; there are: {'; '.join(known)}")
    chosen = [PLAIN, *(name for name in wanted if name != PLAIN)]
    painter = Painter(options.split, options.identities, range(PROMPTS), ROOT)
    pictures: dict[str, list[torch.Tensor]] = {name: [] for name in chosen}
    seconds = dict.fromkeys(chosen, 0.0)
    for person in Progress(painter.people, desc=options.split):
        for name in chosen:
            drawn = painter.drawn(person, known[name])[known[name].chosen]
            pictures[name].append(drawn.pictures)
            seconds[name] += drawn.seconds / options.identities
    print(f"{options.identities} {options.split} faces\n")
    print("\n\n".join(tables(painter.scores(pictures, painter.people), seconds)))
    if options.sheet:
        some = painter.people[:ON_SHEET]
        rows = [[p.photo, *(pictures[name][p.number][prompt] for name in chosen for prompt in SHOWN)] for p in some]
        titles = [
            ", ".join(["the first photo", *(p.prompts[prompt].text.format("S*") for prompt in SHOWN)]) for p in some
        ]
        sheet(rows, ["", *(title for name in chosen for title in (name, ""))], titles, options.sheet)


if __name__ == "__main__":
    main()
