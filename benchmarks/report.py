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


def gate(
    name: str,
    value: float,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    detail: str = "",
) -> bool:
    """Prints "met" or "NOT MET" for a value and exactly one limit of it; NaN is not met."""
    if least is not None:
        met, limit = value >= least, f"at least {least:g}"
    elif most is not None:
        met, limit = value <= most, f"at most {most:g}"
    else:
        met, limit = above is not None and value > above, f"above {above:g}"
    shown = f"{value:.3f}" if abs(value) >= 0.001 else f"{value:.1e}"
    print(f"{'met    ' if met else 'NOT MET'}  {name}: {shown} ({limit}){'  ' + detail if detail else ''}")
    return met
