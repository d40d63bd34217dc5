"""The compact benchmark's picture: size against identity at the left, identity against prompt at the right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from .compact_report import BYTES_GATE, IDENTITY_GATE, PROMPT_GATE, Result
from .contact_sheet import PAPER, font
from .panel import BOTTOM, LEFT, PANEL, TOP, Panel

ONE, STATIC, FACTORS = "#1f5fa8", "#c0561a", "#2b8a3e"


def plot(results: Sequence[Result], path: Path) -> None:
    """Writes the picture; identity is the mean of the shares of NAMED and of likeness. Thin black lines are the gates."""
    points = [(r.bytes / 1e6, (r.named.value + r.likeness.value) / 2, r.prompt.value) for r in results]
    low = math.floor(20 * min(0.9, *(p[1] for p in points))) / 20
    high = math.ceil(20 * max(1.05, *(p[1] for p in points), *(p[2] for p in points))) / 20
    lowest = math.floor(20 * min(0.9, *(p[2] for p in points))) / 20
    legend = TOP + PANEL + BOTTOM + 8
    image = Image.new("RGB", (2 * (PANEL + LEFT) + 40, legend + 20 * len(results) + 10), PAPER)
    draw = ImageDraw.Draw(image)
    sizes = (1.0, 4000.0)
    share = "identity"
    first = Panel(draw, LEFT, sizes, (low, high), "size against identity", ("MB at SD 1.5", share), True)
    second = Panel(
        draw, 2 * LEFT + PANEL + 10, (low, high), (lowest, high), "identity against prompt", (share, "prompt"), False
    )
    steps = [round(low + 0.05 * i, 2) for i in range(round((high - low) / 0.05) + 1)]
    upward = [round(lowest + 0.05 * i, 2) for i in range(round((high - lowest) / 0.05) + 1)]
    first.ticks([1, 3, 10, 30, 100, 300, 1000], steps)
    second.ticks(steps, upward)
    first.gate(BYTES_GATE / 1e6, IDENTITY_GATE)
    second.gate(IDENTITY_GATE, PROMPT_GATE)
    for number, (result, (size, identity, prompt)) in enumerate(zip(results, points, strict=True), 1):
        color = STATIC if result.form.static else FACTORS if result.form.unet_rank else ONE
        first.dot(size, identity, number, color)
        second.dot(identity, prompt, number, color)
        draw.text((LEFT, legend + 20 * (number - 1)), f"{number}  {result.form.name}: {size:.2f} MB", color, font(14))
    image.save(path, optimize=True)
