"""The command line of concept files; every subcommand has a file of its own."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from commands.console import show_any_name
from commands.interruptible import NOTHING_HALF, importing, interruptible

HELP = """\
Works on concept files, the .safetensors files that Save E4T Concept writes to ComfyUI's models/embeddings/e4t.

  python -m commands.concept info COMFYUI/models/embeddings/e4t/anna.safetensors
  python -m commands.concept mix anna.safetensors ben.safetensors --weights 2 1 --name anna_ben --out .
  python -m commands.concept export anna.safetensors --base v1-5.safetensors --out COMFYUI/models

An exact concept has a second file. It is looked for beside the first, in --weights-folder, and where ComfyUI has it: in
models/e4t_concepts, for files in models/embeddings/e4t.
"""


@interruptible(NOTHING_HALF)
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status: 0, 1 after a fault, 2 for wrong arguments, 130 after Ctrl-C."""
    show_any_name()
    with importing(NOTHING_HALF):
        from e4t_core.files.file_errors import shortened

        from . import export, info, mix

    parser = argparse.ArgumentParser(
        prog="python -m commands.concept", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for part in (info, mix, export):
        part.add_to(commands)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        status: int = options.run(options)
        return status
    except ValueError as error:
        # All of the core's and the commands' own errors are of this kind, and each message is one sentence.
        print(shortened(str(error)), file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
