"""The command line of an evaluation."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from commands.batch.arguments import SOME_FAILED, add_input_arguments, add_server_arguments, headers
from commands.console import show_any_name
from commands.interruptible import GOES_ON, importing, interruptible

HELP = """\
How like the person, and how true to the prompt, are the pictures that a workflow of yours draws of people it saw one photo of?

  python -m commands.evaluate --photos lfw --identity dlib --out photos_alone
  python -m commands.evaluate --photos lfw --identity dlib --clip ViT-L-14:clip.safetensors \\
      --server http://127.0.0.1:8188 --workflow one_photo_api.json --out results

--photos holds a folder of photos for each person, as Labeled Faces in the Wild does. One photo of each is learned and
drawn with all prompts by a running ComfyUI; the others judge. Without --workflow only the photos are measured. Whatever
interrupts the command or the server: start the same command again, it goes on where it was. docs/evaluation.md tells more.

Exit status: 0 all is done, 1 it could not begin or go on, 2 wrong arguments, 3 some jobs failed, 130 Ctrl-C.
"""


@interruptible(GOES_ON)
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    show_any_name()
    options = _options(arguments)
    with importing(GOES_ON):
        from commands.batch.faults import BatchError

        from .evaluation import evaluate
        from .faults import EvaluationError

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return SOME_FAILED if evaluate(options) else 0
    except (BatchError, EvaluationError) as error:
        print(error, file=sys.stderr)
        return 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(
        prog="python -m commands.evaluate",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--photos", type=Path, required=True, metavar="DIR", help="folder with a folder of photos for each person"
    )
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of pictures, scores and report")
    made.add_argument(
        "--identity",
        action="append",
        required=True,
        metavar="NETWORK",
        help="dlib, openvino:FILE.xml, onnx:FILE.onnx or python:PACKAGE.MODULE:ATTRIBUTE (may be given several times)",
    )
    made.add_argument("--clip", metavar="ARCH:FILE", help="such as ViT-L-14:FILE, as open_clip reads them")
    made.add_argument("--name", help="the report's title (default: the workflow's file name)")

    people = made.add_argument_group("the people")
    people.add_argument("--people", type=int, default=232, metavar="N", help="how many (default: %(default)s)")
    people.add_argument(
        "--least", type=int, default=3, metavar="N", help="photos that they have (default: %(default)s)"
    )
    people.add_argument(
        "--most", type=int, default=10, metavar="N", help="photos that they have (default: %(default)s)"
    )
    people.add_argument(
        "--choice", type=int, default=0, metavar="SEED", help="of people and learned photos (default: %(default)s)"
    )

    pictures = made.add_argument_group("the pictures")
    pictures.add_argument("--workflow", type=Path, metavar="API.json", help="in API format; of any method")
    pictures.add_argument(
        "--prompts", type=Path, metavar="FILE", help="CSV with the columns prompt and class (default: 15 shipped ones)"
    )
    pictures.add_argument("--draws", type=int, default=1, metavar="N", help="of each prompt, by seeds 1 to N")
    pictures.add_argument(
        "--trigger", metavar="WORD", help="what the workflow calls the person (default: as it says, or S*)"
    )
    pictures.add_argument(
        "--word",
        default="person",
        metavar="WORD",
        help="stands for the trigger in what CLIP is asked; '' leaves it out (default: %(default)s)",
    )
    pictures.add_argument("--retry-failed", action="store_true", help="try jobs again that failed in an earlier run")
    add_input_arguments(pictures)
    add_server_arguments(pictures)
    options = made.parse_args(arguments)
    options.headers = headers(made, options.header)
    if options.draws < 1:
        made.error("--draws: at least 1")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
