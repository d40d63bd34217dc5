"""One file that holds everything: HTML that needs nothing beside it, and can be opened, read and sent."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from e4t_core.files.whole_file import replacing

from .faults import CheckError
from .parts import Drawn, Part, Table
from .privacy import Privacy

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }
table { border-collapse: collapse; margin: 1em 0; font-size: 90% }
th, td { border-bottom: 1px solid #ddd; padding: .2em .8em .2em 0; text-align: left; overflow-wrap: anywhere }
figure { display: inline-block; margin: 0 1em 1em 0; width: 192px; font-size: 80%; vertical-align: top }
figure img { width: 192px }
.fault { color: #a00 }
"""
SIDE = 384
"""Pixels of a picture's longer side in the report."""
WIDTH, HEIGHT, EDGE = 480, 160, 8
WITHHELD = (
    "The pictures of the person are not in this report. They lie beside it, for you; --with-pictures would put them in."
)


def write_report(path: Path, parts: Sequence[Part], privacy: Privacy, with_pictures: bool) -> None:
    """Writes the report whole or not at all.

    Args:
        path: of the file.
        parts: of the check.
        privacy: takes out of every text what nobody else should read.
        with_pictures: whether pictures of the person are in it.

    Raises:
        CheckError: it could not be written.
    """
    held = "\n".join(_page(parts, privacy, with_pictures))
    try:
        with replacing(path) as temporary:
            temporary.write_text(held, encoding="utf-8")
    except OSError as error:
        raise CheckError(
            f"{path} could not be written ({error.strerror}): make room, or name another folder with --out."
        ) from error


def verdict(part: Part) -> str:
    """How a part ended, in a word or two."""
    return "all right" if not part.faults else "1 fault" if len(part.faults) == 1 else f"{len(part.faults)} faults"


def _page(parts: Sequence[Part], privacy: Privacy, with_pictures: bool) -> list[str]:
    def text(written: str) -> str:
        return html.escape(privacy.plain(written))

    made = [
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>E4T self-check</title>',
        f"<style>{STYLE}</style>",
    ]
    made += ["<h1>E4T self-check</h1>", "<table><tr><th>part</th><th>found</th><th>seconds</th></tr>"]
    made += [
        f"<tr><td>{text(part.title)}</td><td>{verdict(part)}</td><td>{part.seconds:.0f}</td></tr>" for part in parts
    ]
    made += ["</table>"]
    for part in parts:
        made += [f"<h2>{text(part.title)}</h2>"]
        made += [f'<p class="fault"><b>Fault:</b> {text(fault)}</p>' for fault in part.faults]
        made += [f"<p>{text(said)}</p>" for said in part.said]
        for table in part.tables:
            made += _table(Table(tuple(map(text, table.head)), tuple(tuple(map(text, row)) for row in table.rows)))
        if len(part.losses) > 1:
            made += [_curve(part.losses)]
        shown = [drawn for drawn in part.drawn if with_pictures or not drawn.shows_person]
        made += [_figure(drawn, text(drawn.caption)) for drawn in shown]
        made += [f"<p>{text(WITHHELD)}</p>"] if len(shown) < len(part.drawn) else []
    return [*made, "</html>"]


def _table(table: Table) -> list[str]:
    rows = ["".join(f"<td>{cell}</td>" for cell in row) for row in table.rows]
    head = "".join(f"<th>{cell}</th>" for cell in table.head)
    return ["<table>", f"<tr>{head}</tr>", *(f"<tr>{row}</tr>" for row in rows), "</table>"]


def _figure(drawn: Drawn, caption: str) -> str:
    small = drawn.picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    held = io.BytesIO()
    small.save(held, "JPEG", quality=88)
    data = base64.b64encode(held.getvalue()).decode("ascii")
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )


def _curve(losses: Sequence[float]) -> str:
    """The losses over the steps, from 0 to the largest."""
    most = max((loss for loss in losses if math.isfinite(loss)), default=1.0) or 1.0
    step = (WIDTH - 2 * EDGE) / (len(losses) - 1)
    points = " ".join(
        f"{EDGE + step * number:.1f},{HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * loss / most:.1f}"
        for number, loss in enumerate(losses)
        if math.isfinite(loss)
    )
    return (
        f'<p>Loss of {len(losses)} steps, 0 to {most:.4g}</p><svg width="{WIDTH}" height="{HEIGHT}" style="border:1px solid #ddd">'
        f'<polyline fill="none" stroke="#06c" stroke-width="2" points="{points}"/></svg>'
    )
