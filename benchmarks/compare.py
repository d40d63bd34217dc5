"""``python -m benchmarks.compare``: every method of the field on the same faces, photos, prompts, noise and judges.

Held-out faces are learned by each method from one photo, the first of them from five as well, and drawn in the 11 prompts of
``quality``. No mask is given to anyone; E4T finds the subject by itself. Compared are E4T (its curve begins with the untuned
encoder) and the siblings, each with the rate and the steps that ``compare_grid`` chose for it on validation faces, the
HyperNetwork if a domain file of that kind is given, the domain word, and a caption that says all that has a word.

Identity is NAMED (``scoring.py``), likeness is the cosine with the photo by the judge's identity net, PROMPT the mean of its
classes. Pictures are drawn after several numbers of steps, each of which is what a person gets who sets the steps so: where a
method's rate falls towards the end, each is a run of its own. So the time to equal identity comes out of the same run: when E4T,
on its curve over time, is first as like as a sibling is at its chosen steps, and when the sibling's own curve first is. Time is
seconds of one core, from the photo to the concept, all included that an artist waits for (image backbone, photo check, subject
search, fixed word); and, for any machine, passes of samples through the UNet (``compare_learning.py``). DreamBooth's prior pictures and
Perfusion's covariance are made once for a base and not counted.

All networks are the mini world's in the width that they were trained in, which is a quarter of the work of ComfyUI's.
``--check-drawing`` compares pictures of both: of words and of the untuned encoder they are the same. Tuning is another: a step of Adam
moves every weight by the same, and where one channel stands for several, less. So the narrow networks need twice the rate.

Gates, set before anything was measured. For each sibling and both judges: where E4T obeys prompts as well (within 0.02), it is at
least as like (NAMED). For Textual Inversion and DreamBooth and both judges: E4T reaches their final NAMED at least 30 times
sooner. Intervals are 95 %, from resamples of individuals, paired; a missed gate is printed as missed.

Everything is kept in runs/compare, so that an interrupted run goes on; there it leaves points.csv, table.csv, speed.csv, table.md
and plot.png.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from commands.progress import Progress

from . import host
from .arms import Drawer, Subject, personalize
from .compact_report import MEASURES
from .compare_arms import PRESET_STEPS, SIBLINGS, Arm, Tried, all_arms, e4t_arm, read_log
from .compare_pictures import ROOT, Painter
from .compare_plot import plot
from .compare_report import Result, gates, main_table, markdown, shown, speed_table, write_points, write_table
from .quality import LOG
from .report import table

SPLIT = "held-out"
INDIVIDUALS, SEVERAL, PHOTOS = 8, 4, 5
PROMPTS = 11
CHECKED = 2


class Late(Exception):
    """The time that was given is over."""


def draw(painter: Painter, arms: Sequence[Arm], people: Sequence[Subject], until: float) -> None:
    """Learns and draws what is not kept yet, one individual after the other.

    Raises:
        Late: before something is begun after ``until``, by ``time.monotonic()``.
    """
    for person, arm in Progress([(person, arm) for person in people for arm in arms], desc=painter.split):
        if not painter.path(person, arm).exists():
            if time.monotonic() > until:
                raise Late
            painter.drawn(person, arm)


def finished(painter: Painter, arms: Sequence[Arm]) -> list[Subject]:
    """The individuals of whom all is kept."""
    return [person for person in painter.people if all(painter.path(person, arm).exists() for arm in arms)]


def result(painter: Painter, arms: Sequence[Arm], people: Sequence[Subject]) -> Result:
    """All scores of these individuals, from what is kept."""
    kept = {arm.name: [painter.drawn(person, arm) for person in people] for arm in arms}
    drawn = {(arm.name, steps): [one[steps] for one in kept[arm.name]] for arm in arms for steps in arm.points}
    pictures = {key: [one.pictures for one in parts] for key, parts in drawn.items()}
    return Result(arms, drawn, painter.scores(pictures, people))


def several_arms(arms: Sequence[Arm], photos: int) -> list[Arm]:
    """Each learning arm with one photo, and with several."""
    return [one for arm in arms if arm.method for one in (arm, arm.multi(photos))]


def report(single: Result, several: Result | None, root: Path, with_sizes: bool = True) -> list[bool]:
    """Prints all tables and gates, and writes the files; which gates are met."""
    root.mkdir(parents=True, exist_ok=True)
    main, speeds, lines = main_table(single, with_sizes), speed_table(single), []
    print(f"\n{single.count} faces, one photo\n{shown(*main)}\n\n{shown(*speeds)}\n")
    lines += [markdown(*main), markdown(*speeds)]
    write_table(*main, root / "table.csv")
    write_table(*speeds, root / "speed.csv")
    if several is not None:
        more = main_table(several, with_sizes)
        print(f"{several.count} faces, one photo and several\n{shown(*more)}\n")
        lines.append(markdown(*more))
        write_table(*more, root / "several.csv")
    (root / "table.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    write_points([one for one in (single, several) if one is not None], root / "points.csv")
    plot(single, several, root / "plot.png")
    met = gates(single)
    print(f"\n{sum(met)} of {len(met)} gates met; {root / 'plot.png'}")
    return met


def append_to_log(single: Result, seconds: float) -> None:
    """A line for this run on held-out individuals."""
    record = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "benchmark": "compare",
        "domain": "face",
        "weights": host.weights_fingerprint("base", "text", "vae", "faces", "backbone", *single.scores),
        "identities": single.count,
        "seconds": round(seconds),
        "settings": {arm.name: [arm.method, getattr(arm.settings, "learning_rate", None), arm.chosen] for arm in single.arms},
        "figures": {
            judge: {
                arm.name: {m: round(single.at_chosen(arm, single.value(judge, arm, m)), 4) for m in MEASURES}
                for arm in single.arms
            }
            for judge in single.scores
        },
    }  # fmt: skip
    with LOG.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    print(f"appended to {LOG.relative_to(host.ROOT)}: commit it")


def check_drawing(count: int = CHECKED) -> None:
    """Prints how nearly pictures of the narrow networks are ComfyUI's: with a word, and by E4T, untuned and tuned: with the rate
    that the grid chose for these networks, and in ComfyUI by the preset."""
    painter = Painter("validation", count, range(PROMPTS))
    ours = e4t_arm(read_log())
    drawer, arm = Drawer(1, {}), replace(ours, points=(PRESET_STEPS,), chosen=PRESET_STEPS)
    word, untuned = all_arms([], [])[0], ours.untuned()
    pairs: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {word.name: [], untuned.name: [], arm.name: []}
    for person in Progress(painter.people, desc="drawing both ways"):
        pairs[word.name].append((painter.drawn(person, word)[0].pictures, drawer.draw("coarse", person)))
        pairs[untuned.name].append((painter.drawn(person, untuned)[0].pictures, drawer.draw("encoder", person)))
        tuned = personalize(drawer.base, drawer.domain("face"), person.photo, None, drawer.settings())
        theirs = [
            host.draw(tuned, [prompt.text.format("S*")], drawer.seeds(person, number), host.SECOND_ORDER)
            for number, prompt in enumerate(person.prompts)
        ]
        pairs[arm.name].append((painter.drawn(person, arm)[PRESET_STEPS].pictures, torch.cat(theirs)))
    ways = ("narrow", "ComfyUI")
    drawn = {(name, way): [pair[at] for pair in parts] for name, parts in pairs.items() for at, way in enumerate(ways)}
    found, one, rows = painter.scores(drawn, painter.people), np.ones((1, count)), []
    for name, parts in pairs.items():
        apart = float(np.mean([float((narrow - wide).abs().mean()) for narrow, wide in parts]))
        for way in ways:
            values = [
                ", ".join(f"{float(of(scores[name, way], one)[0]):.3f}" for scores in found.values())
                for of in MEASURES.values()
            ]
            rows.append((name, way, *values, f"{apart:.4f}"))
    print(table((f"{count} validation faces", "drawn by", *MEASURES, "pixels differ"), rows))


def main() -> int:
    """The command; its exit status is 1 if a gate is missed or it is not finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("validation", "held-out"), default=SPLIT)
    parser.add_argument("--identities", type=int, default=INDIVIDUALS)
    parser.add_argument(
        "--several", type=int, default=SEVERAL, help="how many of them are learned from several photos, too"
    )
    parser.add_argument("--methods", help="comma-separated names of siblings; default: those that the grid's log holds")
    parser.add_argument(
        "--hypernetwork", default="", metavar="FILE", help="a domain file whose offsets depend on the photo"
    )
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; the same command goes on")
    parser.add_argument("--check-drawing", action="store_true", help="only compare with pictures that ComfyUI draws")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.check_drawing:
        check_drawing()
        return 0
    log: list[Tried] = read_log()
    known = [sibling.method for sibling in SIBLINGS if any(line.method == sibling.method for line in log)]
    names = options.methods.split(",") if options.methods else known
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"{unknown[0]!r} is not in the grid's log, which holds: {', '.join(known) or 'nothing yet'}")
    begun, until = time.monotonic(), time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    painter = Painter(options.split, options.identities, range(PROMPTS), ROOT)
    arms = all_arms(names, log, options.hypernetwork)
    more, is_late = several_arms(arms, PHOTOS), False
    try:
        draw(painter, arms, painter.people, until)
        draw(painter, more, painter.people[: options.several], until)
    except Late:
        is_late = True
    people = finished(painter, arms)
    if not people:
        print("nobody is finished: the same command goes on")
        return 1
    with_several = [person for person in finished(painter, more) if person in people][: options.several]
    single = result(painter, arms, people)
    several = result(painter, more, with_several) if with_several else None
    met = report(single, several, ROOT)
    if is_late:
        print(f"{len(people)} of {options.identities} are finished: the same command goes on")
        return 1
    if options.split == SPLIT:
        append_to_log(single, time.monotonic() - begun)
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
