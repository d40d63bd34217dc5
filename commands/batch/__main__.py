"""The command line of a batch."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from commands.console import show_any_name
from commands.interruptible import GOES_ON, importing, interruptible

from .arguments import SOME_FAILED, add_job_arguments

if TYPE_CHECKING:
    from .prepared import Work
    from .summary import Watch

HELP = """\
Draws every photo of a folder with every prompt of a file, by a workflow of yours in a running ComfyUI.

  python -m commands.batch --server http://127.0.0.1:8188 --workflow one_photo_api.json \\
      --images photos --prompts prompts.csv --out results

The workflow is exported from ComfyUI with File, Export (API). A photo is learned once, then drawn with all prompts.
Pictures go to OUT, and OUT/report.jsonl has a line for each. Whatever interrupts the command or the server: start the same
command again, it goes on where it was. docs/batch.md tells more.

Exit status: 0 all is drawn, 1 it could not begin or go on, 2 wrong arguments, 3 some jobs failed, 130 Ctrl-C.
"""


@interruptible(GOES_ON)
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    show_any_name()
    with importing(GOES_ON):
        from tqdm.contrib.logging import logging_redirect_tqdm

        from .faults import BatchError
        from .prepared import prepare
        from .summary import Watch, conclude

    options = _options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        work = prepare(options)
        try:
            if work.left:
                with logging_redirect_tqdm(), Watch(work) as watch:
                    asyncio.run(_drawn(options, work, watch))
        finally:
            # Also after an interruption: the report is for whoever looks at it meanwhile.
            work.results.report.tidy(work.plan.jobs)
            work.results.close()
        return SOME_FAILED if conclude(work) else 0
    except BatchError as error:
        print(error, file=sys.stderr)
        return 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(
        prog="python -m commands.batch", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_job_arguments(made)
    made.add_argument(
        "--server", default="http://127.0.0.1:8188", metavar="URL", help="of ComfyUI (default: %(default)s)"
    )
    made.add_argument(
        "--header", action="append", default=[], metavar="NAME:VALUE", help="sent with every request, for a login"
    )
    made.add_argument(
        "--wait",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="for a server that went away to come back (default: %(default).0f)",
    )
    options = made.parse_args(arguments)
    headers = [header.partition(":") for header in options.header]
    if any(not (name.strip() and value.strip()) for name, _, value in headers):
        made.error("--header: write NAME:VALUE, such as --header 'Authorization: Bearer SECRET'")
    options.headers = {name.strip(): value.strip() for name, _, value in headers}
    return options


async def _drawn(options: argparse.Namespace, work: Work, watch: Watch) -> None:
    from .run import Run, Told
    from .server import Server

    async with Server(options.server, work.results.batch, options.headers) as server:
        # A wrong address is said at once; only a server that was there is waited for.
        await server.check(work.plan.filling.workflow)
        told = Told(watch.ended, watch.doing)
        await Run(server, work.plan.filling, work.left, work.results, options.wait, told).work()


if __name__ == "__main__":
    raise SystemExit(main())
