"""The command line of learning photos outside of ComfyUI."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from commands.console import show_any_name
from commands.interruptible import NOTHING_HALF, importing, interruptible

HELP = """\
Learns the photos in a folder (of ONE person or thing) by a method, and writes a concept file for ComfyUI.

  python -m commands.train lora --photos anna/ --base v1-5.safetensors --out COMFYUI/models/embeddings/e4t/anna.safetensors
  python -m commands.train dreambooth --photos rex/ --class-word dog --base v1-5/ --out rex.safetensors --set steps=1000
  python -m commands.train e4t --photos anna/ --domain faces.safetensors --base v1-5.safetensors --out anna.safetensors
  python -m commands.train hypernetwork --photos anna/ --domain hyper.safetensors --base v1-5.safetensors --out anna.safetensors

What a mask marks is learned; of a photo without one the subject that the domain finds, or the middle (--crop).
--set changes a method's settings; its help page lists them (web/docs). Prior pictures (DreamBooth) are drawn once and kept.
"""


@interruptible(NOTHING_HALF)
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status: 0, 1 after a fault, 2 for wrong arguments, 130 after Ctrl-C."""
    show_any_name()
    with importing(NOTHING_HALF):
        from e4t_core.files.file_errors import shortened

        from . import learning

    parser = argparse.ArgumentParser(
        prog="python -m commands.train", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    learning.add_arguments(parser)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        learning.run(options)
    except ValueError as error:
        # All of the core's and the commands' own errors are of this kind, and each message is one sentence.
        print(shortened(str(error), 600), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
