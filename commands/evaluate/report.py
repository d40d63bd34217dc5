"""The report of an evaluation, as Markdown: how it was made, what the photos say, what the pictures score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .likeness import Calibration, Spread
from .people import Choice
from .tables import Adherence, Figures

PLOT = "report.png"


@dataclass(frozen=True)
class Judged:
    """What one identity network says.

    Attributes:
        calibration: of the real photos; none where they have too few faces.
        without_references: people that it cannot judge.
        faceless_concepts: people in whose learned photo it finds no face.
        figures: of the pictures.
    """

    calibration: Calibration | None
    without_references: Sequence[int]
    faceless_concepts: Sequence[int]
    figures: Sequence[Figures]


@dataclass(frozen=True)
class Content:
    """All that a report says.

    Attributes:
        title: its first line.
        choice: of people.
        fitting: people of the folder that fit the choice.
        photos: of the chosen people.
        prompts: how many, seeds counted.
        failed: jobs without a picture.
        clip: the architecture; "" without CLIP.
        judged: by the name of each identity network.
        adherence: by CLIP.
    """

    title: str
    choice: Choice
    fitting: int
    photos: int
    prompts: int
    failed: int
    clip: str
    judged: Mapping[str, Judged]
    adherence: Sequence[Adherence]


def text(content: Content) -> str:
    """The report. It names nobody: people are numbers."""
    parts = [f"# {content.title}", _how(content), _photos(content)]
    parts += [_pictures(name, judged) for name, judged in content.judged.items() if judged.figures]
    if content.adherence:
        parts.append(_prompts(content))
    if any(judged.figures for judged in content.judged.values()):
        parts.append(f"![shares and prompts]({PLOT})")
    return "\n\n".join(parts) + "\n"


def _how(content: Content) -> str:
    choice = content.choice
    chosen = f"{choice.count} of {content.fitting} people with {choice.least} to {choice.most} photos"
    said = [
        f"{chosen} ({content.photos} photos), chosen by seed {choice.seed}. One photo of each is learned, the others judge."
    ]
    if content.prompts:
        said.append(f"{content.prompts} prompts for each.")
    if content.failed:
        said.append(f"**{content.failed} jobs failed and have no picture; they are in no figure.**")
    said.append("Brackets are 95 % intervals over people.")
    return " ".join(said)


def _photos(content: Content) -> str:
    lines = [
        "## The real photos",
        "",
        "| network | photos | no face found | same person, mean (5 %, 95 %) | two people, mean (5 %, 95 %) | told apart |",
        "|---|---|---|---|---|---|",
    ]
    notes = []
    for name, judged in content.judged.items():
        if (known := judged.calibration) is None:
            lines.append(f"| {name} | too few faces | | | | |")
        else:
            lines.append(
                f"| {name} | {known.photos} | {_part(known.faceless, known.photos)} | {_spread(known.same)} |"
                f" {_spread(known.other)} | {100 * known.told_apart:.1f} % |"
            )
        if judged.without_references:
            notes.append(
                f"{name} finds no face in the other photos of {_numbers(judged.without_references)}: left out of its figures."
            )
        if judged.faceless_concepts:
            notes.append(
                f"{name} finds no face in the learned photo of {_numbers(judged.faceless_concepts)}: their ceiling is their"
                " floor."
            )
    return "\n".join([*lines, *(part for note in notes for part in ("", note))])


def _pictures(name: str, judged: Judged) -> str:
    lines = [
        f"## Identity by {name}",
        "",
        "| prompts | pictures | no face found | identity | to the learned photo | floor | ceiling | share of the way |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.group} | {row.pictures} | {_part(row.faceless, row.pictures)} | {row.identity} | {_number(row.to_photo)} |"
        f" {row.floor:.3f} | {row.ceiling:.3f} | {row.share} |"
        for row in judged.figures
    ]
    return "\n".join(lines)


def _prompts(content: Content) -> str:
    lines = [
        f"## Prompts and pictures by CLIP {content.clip}",
        "",
        "| prompts | prompt score | to other classes' prompts | picture score | floor | ceiling | share of the way |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.group} | {row.prompt} | {_number(row.other_prompts)} | {row.likeness.identity} | {row.likeness.floor:.3f} |"
        f" {row.likeness.ceiling:.3f} | {row.likeness.share} |"
        for row in content.adherence
    ]
    return "\n".join(lines)


def _spread(spread: Spread) -> str:
    return f"{spread.mean:.3f} ({spread.low:.3f}, {spread.high:.3f}), {spread.pairs} pairs"


def _part(count: int, whole: int) -> str:
    return f"{count} ({100 * count / whole:.1f} %)"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _numbers(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
    return f"{len(numbers)} people (number {shown})" if len(numbers) > 1 else f"one person (number {shown})"
