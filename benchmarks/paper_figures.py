"""``python -m benchmarks.paper_figures WHICH``: the paper's figures 6, 7 and 8 on the mini world, as pictures and tables.

* ``refinement`` (figure 6): one seed, the word frozen ever later while the picture is drawn. A column for each moment; the table
  says what of the individual is there, by both judges: the paper says first rough features, then fine ones.
* ``word_length`` (figure 7): how far the word is from the coarse one over the noise levels, averaged over individuals and prompts, tuned
  with and without the penalty on the word; of the shortened pre-trainings too, as far as ``ablations`` has made them.
* ``out_of_domain`` (figure 8): photos of what the face domain never saw, near to it (cats) and far from it (toys of blocks).

Figures 6 and 7 are made of the ablations' pictures, kept in runs/ablations, and draw what is missing; an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from .ablation_arms import ARMS, FROZEN, FULL, SHORT, Ablation
from .ablation_domains import STEPS, Unfinished, domain_file
from .ablation_pictures import DOMAIN, Drawn, Painter
from .contact_sheet import PAPER, font
from .out_of_domain import out_of_domain
from .panel import BOTTOM, LEFT, PANEL, TOP, Panel
from .picture_sheet import sheet
from .quality import judged
from .report import table

SHOWN = (0, 1, 3)  # prompts on figure 6's sheet: plain, a style, a background
COLORS = ("#2b8a3e", "#1f5fa8", "#c0561a", "#8e44ad", "#666666")
WORDS = (FULL, "no lambda", "no tuning", SHORT, "short no lambda")


def refinement(painter: Painter, out: Path) -> None:
    """Figure 6: the sheet, and what is there of the individual by when the word is frozen."""
    arms = [*FROZEN, ARMS[FULL]]
    # The whole concept first: the others draw it, too.
    drawn = painter.all([ARMS[FULL], *FROZEN])
    rows, titles = [], []
    for person in painter.people:
        for prompt in SHOWN:
            rows.append([person.photo, *(drawn[arm.name][person.number].pictures[prompt] for arm in arms)])
            titles.append(person.prompts[prompt].text.format("S*"))
    percents = [f"at {arm.changes['end_percent']:.0%}" for arm in FROZEN]
    sheet(rows, ["the photo", *percents, "never"], titles, out)
    whole = torch.cat([one.pictures for one in drawn[FULL]])
    apart = {arm.name: (torch.cat([one.pictures for one in drawn[arm.name]]) - whole).abs().mean() for arm in arms}
    pictures = {name: [one.pictures for one in found] for name, found in drawn.items()}
    scored = judged(painter.people, pictures, painter.split, strangers=painter.strangers)
    for judge, of in scored.items():
        one = np.ones((1, len(painter.people)))
        found = []
        for arm, frozen in zip(arms, [*percents, "never"], strict=True):
            scores = of[arm.name]
            geometry, marks = (
                1 - float(part.value.sum() / part.weight.sum()) for part in (scores.geometry, scores.marks)
            )
            found.append((
                frozen, f"{float(scores.named_ratio(one)[0]):.2f}", f"{geometry:.2f}", f"{marks:.2f}",
                f"{float(scores.likeness_mean(one)[0]):.2f}", f"{float(scores.prompt_mean(one)[0]):.2f}",
                f"{255 * float(apart[arm.name]):.1f}",
            ))  # fmt: skip
        header = (judge, "NAMED", "geometry", "marks", "likeness", "PROMPT", "levels from never (of 255)")
        print(f"{table(header, found)}\n")
    print(f"{out}: {len(painter.people)} individuals, the word frozen ever later")


def lengths_of(drawn: Sequence[Drawn]) -> list[tuple[float, float]]:
    """(timestep, mean length of the word) by evaluation, over all prompts of all individuals."""
    words = torch.stack([one.words for one in drawn])
    return [(float(t), float(length)) for t, length in words.mean(dim=(0, 1))]


def word_length(painter: Painter, out: Path) -> None:
    """Figure 7: the curves, and their numbers."""
    ready = [
        ARMS[name]
        for name in WORDS
        if ARMS[name].pretraining is None or domain_file(ARMS[name], painter.steps).exists()
    ]
    drawn = painter.all(ready)
    curves = {arm.name: lengths_of(drawn[arm.name]) for arm in ready}
    header = ("timestep", *curves)
    steps = [round(t) for t, _ in curves[FULL]]
    print(table(header, [(t, *(f"{curve[row][1]:.3f}" for curve in curves.values())) for row, t in enumerate(steps)]))
    draw_curves(curves, ready, out)
    print(f"\n{out}: |e_c - e_d| / |e_d|, mean of {len(painter.people)} individuals and all prompts")


def draw_curves(curves: Mapping[str, Sequence[tuple[float, float]]], arms: Sequence[Ablation], out: Path) -> None:
    """A line for each arm, from noise (left) to picture (right)."""
    most = float(np.ceil(max(length for curve in curves.values() for _, length in curve) / 0.5) * 0.5)
    legend = TOP + PANEL + BOTTOM
    image = Image.new("RGB", (LEFT + PANEL + 40, legend + 20 * len(arms) + 10), PAPER)
    draw = ImageDraw.Draw(image)
    names = ("timestep", "")
    panel = Panel(
        draw, LEFT, (1000.0, 0.0), (0.0, most), "how far the word is from the coarse one, / its length", names, False
    )
    panel.ticks([1000, 800, 600, 400, 200, 0], [round(most * part / 5, 2) for part in range(6)])
    for number, arm in enumerate(arms):
        panel.line(curves[arm.name], COLORS[number])
        draw.text((LEFT, legend + 20 * number), f"{arm.name}: {arm.what}", COLORS[number], font(14))
    out.parent.mkdir(parents=True, exist_ok=True)
    image.save(out, optimize=True)


FIGURES: Mapping[str, tuple[Callable[[Painter, Path], None], str]] = {
    "refinement": (refinement, "figure6.jpg"),
    "word_length": (word_length, "figure7.png"),
    "out_of_domain": (out_of_domain, "figure8.jpg"),
}


def main() -> int:
    """The command; its exit status is 1 if ``--minutes`` were not enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=tuple(FIGURES))
    parser.add_argument("--split", choices=("validation", "held-out"), default="validation")
    parser.add_argument("--identities", type=int, default=4, help=f"{DOMAIN}s; of each kind in out_of_domain")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the shortened pre-trainings")
    parser.add_argument("--minutes", type=float, help="begin nothing more after so many; the same command goes on")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    until = float("inf") if options.minutes is None else time.monotonic() + 60 * options.minutes
    made, name = FIGURES[options.figure]
    try:
        made(Painter(options.split, options.identities, options.steps, until), options.out or Path("runs") / name)
    except Unfinished as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
