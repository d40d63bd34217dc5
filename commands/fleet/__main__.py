"""The command line of a fleet."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from commands.batch.arguments import SOME_FAILED, add_job_arguments
from commands.console import show_any_name
from commands.interruptible import GOES_ON, importing, interruptible

NEEDS_RAY = "This needs Ray, which is installed apart: python -m pip install ray aiohttp filelock pillow tqdm"
HELP = """\
Draws every photo of a folder with every prompt of a file, on many graphics cards. Each card has a ComfyUI of its own,
which this starts and ends.

  python -m commands.fleet --comfyui COMFYUI --workflow one_photo_api.json \\
      --images photos --prompts prompts.csv --out results --seats 2
  python -m commands.fleet --address auto ...       on a node of a cluster that `ray start` has made

Workflow, photos, prompts, results and exit status are those of python -m commands.batch; docs/fleet.md tells more.
"""


@interruptible(GOES_ON)
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    show_any_name()
    options = _options(arguments)
    with importing(GOES_ON):
        try:
            import ray  # noqa: F401
        except ImportError:
            print(NEEDS_RAY, file=sys.stderr)
            return 1
        from tqdm.contrib.logging import logging_redirect_tqdm

        from commands.batch.faults import BatchError
        from commands.batch.prepared import prepare
        from commands.batch.summary import Watch, conclude

        from .cluster import cluster
        from .installation import installed
        from .work import work_through

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        installed(options)
        work = prepare(options)
        try:
            if work.left:
                with cluster(options.address, options.seats) as cards, logging_redirect_tqdm(), Watch(work) as watch:
                    work_through(options, work, cards, watch)
        finally:
            work.results.report.tidy(work.plan.jobs)
            work.results.close()
        return SOME_FAILED if conclude(work) else 0
    except BatchError as error:
        print(error, file=sys.stderr)
        return 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(
        prog="python -m commands.fleet", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_job_arguments(made)
    made.add_argument("--comfyui", type=Path, required=True, metavar="DIR", help="folder that holds ComfyUI's main.py")
    made.add_argument(
        "--base-directory", type=Path, metavar="DIR", help="ComfyUI's, if its models and packs are elsewhere"
    )
    made.add_argument("--python", default=sys.executable, metavar="FILE", help="that runs ComfyUI (default: this one)")
    made.add_argument(
        "--comfyui-argument", action="append", default=[], metavar="ARG", help="more of ComfyUI's own, such as =--fast"
    )
    made.add_argument("--address", help="of a Ray cluster, such as auto (default: Ray is started on this machine)")
    made.add_argument("--seats", type=int, metavar="N", help="ComfyUIs at a time (default: one for each graphics card)")
    made.add_argument("--cpu", action="store_true", help="compute on processors, one for each seat")
    made.add_argument(
        "--wait",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="for any seat to be had (default: %(default).0f)",
    )
    options = made.parse_args(arguments)
    if options.seats is not None and options.seats < 1:
        made.error("--seats: at least 1")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
