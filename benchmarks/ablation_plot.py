"""The ablations' picture, as the paper's figure 4b: identity against prompt, a plot for each judge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from .ablation_arms import EDITING, FULL, IDENTITY, SHORT, Ablation
from .contact_sheet import PAPER, font
from .panel import BOTTOM, LEFT, PANEL, TOP, Panel

WHOLE, SHIPPED, SHORTENED = "#2b8a3e", "#1f5fa8", "#c0561a"


def plot(
    figures: Mapping[str, Mapping[str, Mapping[str, float]]], arms: Sequence[Ablation], path: Path, step: float = 0.1
) -> None:
    """Writes the picture as PNG.

    Args:
        figures: judge -> arm -> measure -> value.
        arms: in the order of their numbers; green: nothing is switched, orange: a shortened pre-training.
        path: of the file.
        step: between two marks of an axis.
    """
    points = {judge: [(of[arm.name][IDENTITY], of[arm.name][EDITING]) for arm in arms] for judge, of in figures.items()}
    ends = [_ends([pair[axis] for found in points.values() for pair in found], step) for axis in (0, 1)]
    legend = TOP + PANEL + BOTTOM + 8
    image = Image.new("RGB", (len(points) * (PANEL + LEFT + 10) + 20, legend + 20 * len(arms) + 10), PAPER)
    draw = ImageDraw.Draw(image)
    for place, (judge, found) in enumerate(points.items()):
        left = LEFT + place * (PANEL + LEFT + 10)
        panel = Panel(draw, left, ends[0], ends[1], judge, (IDENTITY, EDITING), False)
        panel.ticks(_marks(ends[0], step), _marks(ends[1], step))
        for number, (arm, (x, y)) in enumerate(zip(arms, found, strict=True), 1):
            panel.dot(x, y, number, _color(arm))
    for number, arm in enumerate(arms, 1):
        draw.text((LEFT, legend + 20 * (number - 1)), f"{number}  {arm.name}: {arm.what}", _color(arm), font(14))
    image.save(path, optimize=True)


def _color(arm: Ablation) -> str:
    if arm.name in (FULL, SHORT):
        return WHOLE
    return SHIPPED if arm.pretraining is None else SHORTENED


def _ends(values: Sequence[float], step: float) -> tuple[float, float]:
    low, high = math.floor(min(values) / step + 1e-9), math.ceil(max(values) / step - 1e-9)
    return low * step, max(high, low + 1) * step


def _marks(ends: tuple[float, float], step: float) -> list[float]:
    return [round(ends[0] + step * number, 6) for number in range(round((ends[1] - ends[0]) / step) + 1)]
