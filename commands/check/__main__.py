"""The command line of the self-check."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from commands.console import show_any_name
from commands.interruptible import NOTHING_HALF, importing, interruptible

HELP = """\
Tries everything once with your own files, and writes one report that you can send to us: what is installed, whether
ComfyUI's networks and diffusers' agree on these weights, what learning would take of memory, one photo learned and eight
pictures drawn. Nothing is sent, and no photo is in the report.

  python -m commands.check --comfyui ComfyUI --checkpoint v1-5.safetensors --domain faces.safetensors --photo me.jpg

docs/check.md tells what it takes, and what the report holds.
"""


@interruptible(NOTHING_HALF)
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 1 where anything is wrong."""
    show_any_name()
    options = _options(arguments)
    with importing(NOTHING_HALF):
        from .faults import CheckError
        from .report import verdict
        from .run import check

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        parts, report = check(options, lambda line: print(line, flush=True))
    except CheckError as error:
        print(error, file=sys.stderr)
        return 1
    print()
    for part in parts:
        print(f"{part.title}: {verdict(part)}, {part.seconds:.0f} s")
    print(f"The report: {report}")
    return 1 if any(part.faults for part in parts) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(
        prog="python -m commands.check", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--comfyui", type=Path, required=True, metavar="DIR", help="folder that holds ComfyUI's main.py")
    made.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE", help="base model, one .safetensors file"
    )
    made.add_argument("--domain", type=Path, required=True, metavar="FILE", help="domain file")
    made.add_argument("--photo", type=Path, required=True, metavar="FILE", help="a photo of what the domain is about")
    made.add_argument(
        "--clip-vision", type=Path, metavar="FILE", help="image backbone, if the domain does not bring its own"
    )
    made.add_argument(
        "--out", type=Path, default=Path("e4t_check"), metavar="DIR", help="for the report (default: %(default)s)"
    )
    made.add_argument("--with-pictures", action="store_true", help="put the pictures of the person into the report")
    made.add_argument(
        "--identity",
        action="append",
        default=[],
        metavar="NETWORK",
        help="that scores likeness; may be repeated (see docs/check.md)",
    )
    made.add_argument(
        "--clip", metavar="ARCHITECTURE:FILE", help="CLIP that scores how well pictures fit their prompts"
    )
    made.add_argument("--python", default=sys.executable, metavar="FILE", help="that runs ComfyUI (default: this one)")
    made.add_argument("--cpu", action="store_true", help="compute on the processor")
    made.add_argument("--port", type=int, default=0, help="for ComfyUI (default: any that is free)")
    made.add_argument(
        "--comfyui-argument",
        action="append",
        default=[],
        metavar="ARG",
        help="more of ComfyUI's own, such as =--lowvram",
    )
    options = made.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        made.error("--port: 0 to 65535")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
