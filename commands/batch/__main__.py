"""The command line of a batch."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from commands.console import show_any_name
from commands.interruptible import GOES_ON, importing, interruptible

from .arguments import SOME_FAILED, add_job_arguments, add_server_arguments, headers

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
        from .drawing import draw
        from .faults import BatchError
        from .prepared import prepare
        from .summary import conclude

    options = _options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        work = prepare(options)
        draw(work, options.server, options.headers, options.wait)
        return SOME_FAILED if conclude(work) else 0
    except BatchError as error:
        print(error, file=sys.stderr)
        return 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(
        prog="python -m commands.batch", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_job_arguments(made)
    add_server_arguments(made)
    options = made.parse_args(arguments)
    options.headers = headers(made, options.header)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
