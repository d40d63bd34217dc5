"""The arguments that every way to run jobs has, and its exit status."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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
    add_input_arguments(parser)
    parser.add_argument("--retry-failed", action="store_true", help="try jobs again that failed in an earlier run")


def add_input_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds what says where photo, prompt and seed go."""
    told = "TITLE.INPUT or ID.INPUT; found by itself where there is one (may be given several times)"
    for name in ("photo", "prompt", "seed"):
        parser.add_argument(
            f"--{name}", action="append", default=[], metavar="INPUT", help=f"the input that takes the {name}: {told}"
        )


def add_server_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds what says which running ComfyUI draws; :func:`headers` reads one of them."""
    parser.add_argument(
        "--server", default="http://127.0.0.1:8188", metavar="URL", help="of ComfyUI (default: %(default)s)"
    )
    parser.add_argument(
        "--header", action="append", default=[], metavar="NAME:VALUE", help="sent with every request, for a login"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="for a server that went away to come back (default: %(default).0f)",
    )


def headers(parser: argparse.ArgumentParser, written: Sequence[str]) -> dict[str, str]:
    """What is sent with every request; ends the command where one is not as it should be."""
    parts = [header.partition(":") for header in written]
    if any(not (name.strip() and value.strip()) for name, _, value in parts):
        parser.error("--header: write NAME:VALUE, such as --header 'Authorization: Bearer SECRET'")
    return {name.strip(): value.strip() for name, _, value in parts}
