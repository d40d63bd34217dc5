"""Plain tables for a terminal, and one line for each gate."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest entry; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for number, row in enumerate(cells):
        first = row[0].ljust(widths[0])
        lines.append("  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]))
        if number == 0:
            lines.append("-" * len(lines[0]))
    return "\n".join(lines)


def gate(name: str, value: float, least: float, detail: str = "") -> bool:
    """Prints "met" or "NOT MET" for a value that must be at least ``least``; NaN is not met."""
    met = value >= least
    print(
        f"{'met    ' if met else 'NOT MET'}  {name}: {value:.3f} (at least {least:g}){'  ' + detail if detail else ''}"
    )
    return met
