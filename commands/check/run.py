"""The whole check, part by part, into one report."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from commands.batch.photos import file_name
from commands.comfyui.own_server import Installation, absolute_program
from e4t_core.files.whole_file import replacing

from . import drawing, parity, scores
from .child import ROOT, answer_of
from .faults import CheckError
from .given import Given, Usable, look_at
from .installed import check_comfyui, versions
from .parts import Part, done
from .privacy import Privacy
from .report import write_report

REPORT, PICTURES = "report.html", "pictures"
Say = Callable[[str], None]


def check(options: argparse.Namespace, say: Say) -> tuple[list[Part], Path]:
    """Every part, and the report that was written.

    Args:
        options: of the command.
        say: shows a line.

    Raises:
        CheckError: the report cannot be written.
    """
    out: Path = options.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckError(f"{out} cannot be made ({error.strerror}): name another folder with --out.") from error
    given = Given(options.checkpoint, options.domain, options.photo, options.clip_vision)
    installation = Installation(
        options.comfyui.absolute(),
        python=absolute_program(options.python),
        cpu=options.cpu,
        arguments=tuple(options.comfyui_argument),
        port=options.port,
    )
    with tempfile.TemporaryDirectory(prefix="e4t_check_") as name:
        parts = _parts(options, given, installation, Path(name), say)
    files = [given.checkpoint, given.domain, given.photo, *([given.clip_vision] if given.clip_vision else [])]
    folders = [*(path.absolute().parent for path in files), installation.folder, out, ROOT, Path.cwd()]
    folders += [Path(tempfile.gettempdir()), Path(sys.prefix), Path(installation.python).parent]
    write_report(out / REPORT, parts, Privacy(folders, given.photo), options.with_pictures)
    return parts, out / REPORT


def _parts(options: argparse.Namespace, given: Given, installation: Installation, folder: Path, say: Say) -> list[Part]:
    usable = Usable()
    parts: list[Part] = []

    def does(title: str, work: Callable[[Part], None]) -> None:
        parts.append(done(f"{len(parts) + 1}. {title}", _announced(say, f"{len(parts) + 1}. {title} ...", work)))
        for fault in parts[-1].faults:
            say(f"   {fault}")

    def installed(part: Part) -> None:
        nonlocal usable
        part.table(("this command", ""), list(versions().items()))
        usable = look_at(given, part)
        check_comfyui(installation.folder)
        parity.inside(installation, given, usable, folder)
        part.table(("ComfyUI's process", ""), list(answer_of(folder, "here").items()))

    does("What is installed and found", installed)
    does("Both backends on these weights", lambda part: parity.compare(part, given, usable, folder))
    does("Memory plans", lambda part: _memory(part, usable, folder))
    does("Learning and drawing", lambda part: _draw(part, installation, given, usable, options.out, say))
    drawn = parts[-1].drawn
    does("Scores", lambda part: scores.score(part, options.identity, options.clip, usable.photo, drawn))
    return parts


def _announced(say: Say, line: str, work: Callable[[Part], None]) -> Callable[[Part], None]:
    def announced(part: Part) -> None:
        say(line)
        work(part)

    return announced


def _memory(part: Part, usable: Usable, folder: Path) -> None:
    if not usable.learns:
        raise CheckError("What the plans need is not known, because a file cannot be used: part 1 says why.")
    found = answer_of(folder, "memory")
    beside = "" if found["free RAM"] is None else f", and {found['free RAM']:.1f} GB of RAM"
    part.said += [
        f"Free on the device ({found['device']}): {found['free']:.1f} of {found['total']:.1f} GB{beside}.",
        f"The preset is {found['steps']} steps of {found['batch']}; it would take the {found['chosen']}.",
    ]
    rows = [
        (
            row["plan"],
            "yes" if row["fits"] else "no",
            row["micro-batch"],
            f"{row['card']:.2f}",
            f"{row['RAM']:.2f}",
            f"{row['whole batch']:.2f}",
        )
        for row in found["rows"]
    ]
    part.table(
        ("plan", "fits", "with micro-batch", "GB on the device", "GB of RAM beside", "GB with the whole batch at once"),
        rows,
    )


def _draw(part: Part, installation: Installation, given: Given, usable: Usable, out: Path, say: Say) -> None:
    check_comfyui(installation.folder)
    if not usable.checkpoint:
        raise CheckError("Nothing can be drawn without a checkpoint: part 1 says what is wrong with it.")
    if not usable.learns:
        part.faults.append(
            "Nothing was learned, because a file cannot be used: part 1 says why. The base model alone was drawn."
        )
    drawing.draw(part, installation, given, usable, lambda line: say(f"   {line}"))
    (out / PICTURES).mkdir(exist_ok=True)
    for number, drawn in enumerate(part.drawn, 1):
        with replacing(out / PICTURES / f"{number}_{file_name(drawn.caption)}.png") as temporary:
            drawn.picture.save(temporary, "PNG")
