"""The arguments that every way to run jobs has, and its exit status."""

from __future__ import annotations

import argparse
from pathlib import Path

SOME_FAILED = 3
"""Exit status where every job ended, and some of them with an error."""


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says which jobs there are, and where their results go."""
    parser.add_argument("--workflow", type=Path, required=True, metavar="API.json", help="in API format")
    parser.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="folder of photos, each of them learned by itself"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        required=True,
        metavar="FILE",
        help="CSV with a column prompt, perhaps seed and columns named TITLE.INPUT; or a text file, one prompt a line",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of pictures and report")
    told = "TITLE.INPUT or ID.INPUT; found by itself where there is one (may be given several times)"
    for name in ("photo", "prompt", "seed"):
        parser.add_argument(
            f"--{name}", action="append", default=[], metavar="INPUT", help=f"the input that takes the {name}: {told}"
        )
    parser.add_argument("--retry-failed", action="store_true", help="try jobs again that failed in an earlier run")
