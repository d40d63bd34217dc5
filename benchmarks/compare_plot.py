"""The comparison's picture: prompts against identity at the left (the paper's figure 4a), identity over time at the right."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw

from .compare_report import BOTH, IDENTITY, PROMPT, Result
from .contact_sheet import GRAY, INK, PAPER, font
from .panel import BOTTOM, LEFT, PANEL, TOP, Panel

COLORS = ("#c0261a", "#1f5fa8", "#2b8a3e", "#c07a1a", "#7a3fa0", "#0f8a8a", "#8a5a2b", "#b0307a", "#5a6a10", "#444466")
LINE = 21


def plot(single: Result, several: Result | None, path: Path) -> None:
    """Writes the picture. Both judges' mean; a line follows training, its dot is the chosen point, a ring several photos."""
    arms, lows, highs = single.arms, [0.0, 0.0], [1.0, 1.0]
    values = {arm.name: (single.value(BOTH, arm, PROMPT), single.value(BOTH, arm, IDENTITY)) for arm in arms}
    multi = {} if several is None else {
        arm.method: tuple(several.value(BOTH, arm, measure)[0] for measure in (PROMPT, IDENTITY))
        for arm in several.arms
        if arm.photos > 1 and arm.chosen
    }  # fmt: skip
    for axis in (0, 1):
        every = [value for pair in values.values() for value in pair[axis]] + [point[axis] for point in multi.values()]
        lows[axis] = math.floor(10 * min(every)) / 10
        highs[axis] = math.ceil(10 * max(every)) / 10
    times = [seconds for arm in arms if arm.method for seconds in single.cost(arm, "seconds")]
    span = 0.8 * min(times), 1.25 * max(times)
    legend = TOP + PANEL + BOTTOM + 8
    columns = 2
    image = Image.new("RGB", (2 * (PANEL + LEFT) + 40, legend + LINE * math.ceil(len(arms) / columns) + 34), PAPER)
    draw = ImageDraw.Draw(image)
    first = Panel(
        draw, LEFT, (lows[0], highs[0]), (lows[1], highs[1]), "prompts against identity", (PROMPT, IDENTITY), False
    )
    second = Panel(
        draw, 2 * LEFT + PANEL + 10, span, (lows[1], highs[1]), "identity over time", ("seconds", IDENTITY), True
    )
    upward = _ticks(lows[1], highs[1])
    first.ticks(_ticks(lows[0], highs[0]), upward)
    second.ticks([time for time in (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000) if span[0] <= time <= span[1]], upward)
    for number, arm in enumerate(arms):
        color = COLORS[number % len(COLORS)] if arm.method else INK
        prompts, identities = values[arm.name]
        panels = [(first, prompts)]
        if arm.method:
            panels.append((second, single.cost(arm, "seconds")))
        at = arm.points.index(arm.chosen)
        for panel, across in panels:
            _line(draw, panel, across, identities, color)
            panel.dot(across[at], identities[at], number + 1, color)
        if arm.method in multi and arm.chosen:
            x, y = first.place(*multi[arm.method])
            draw.ellipse((x - 6, y - 6, x + 6, y + 6), outline=color, width=2)
            draw.text((x + 7, y - 15), str(number + 1), color, font(14))
        column, row = divmod(number, math.ceil(len(arms) / columns))
        place = LEFT + column * (PANEL + LEFT), legend + LINE * row
        seconds = f": {single.cost(arm, 'seconds')[at]:.1f} s" if arm.method else ""
        draw.text(place, f"{number + 1}  {arm.name}{seconds}", color, font(14))
    about = f"{single.count} faces, one photo; small dots: other numbers of steps"
    if multi and several is not None:
        photos = max(arm.photos for arm in several.arms)
        about += f"; rings: {photos} photos, {several.count} of these faces"
    draw.text((LEFT, image.height - 26), about, GRAY, font(13))
    image.quantize(64).save(path, optimize=True)


def _ticks(low: float, high: float) -> list[float]:
    return [round(low + 0.1 * n, 1) for n in range(round((high - low) / 0.1) + 1)]


def _line(draw: ImageDraw.ImageDraw, panel: Panel, across: list[float], up: list[float], color: str) -> None:
    places = [panel.place(x, y) for x, y in zip(across, up, strict=True)]
    if len(places) > 1:
        draw.line(places, color, 2)
    for x, y in places:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), color)
