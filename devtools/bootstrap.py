"""The half of `dev.py` that runs on any Python: it sets up, then hands over to a module that runs in `.venv`."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from . import comfyui_source, environment
from .console import Failure, plain_output, say
from .places import REPOSITORY, venv_python

PASSED_ON = ("test", "train", "bench")
"""Commands whose further words are for the program that they start, options and all."""


def set_up() -> Path:
    """Makes the virtual environment and finds or fetches ComfyUI; returns ComfyUI's folder.

    Raises: Failure with one sentence if that cannot be done.
    """
    with environment.hold() as lock:
        environment.make(lock)
        comfyui = comfyui_source.find_or_fetch()
        environment.install(lock, comfyui)
    return comfyui


def hand_over(module: str, *arguments: str) -> int:
    """Sets up, then runs `module` in `.venv` in place of this process; its exit status where that is not possible."""
    comfyui = set_up()
    command = [str(venv_python()), "-m", "devtools.program", module, *arguments]
    os.chdir(REPOSITORY)
    os.environ["COMFYUI_PATH"] = str(comfyui)
    if os.name != "nt":
        # One process: every signal, whoever sends it, reaches what runs.
        os.execv(command[0], command)
    # On Windows the console sends Ctrl-C to both processes; this one only waits.
    signal.signal(signal.SIGINT, lambda *_: None)
    return subprocess.run(command, check=False).returncode


def port(text: str) -> int:
    """A port number as typed; raises: ArgumentTypeError."""
    if text.isdecimal() and 1 <= len(text) <= 5 and 1 <= int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text[:20]!r} is no port; a port is a number from 1 to 65535")


def parser_of(description: str) -> argparse.ArgumentParser:
    """The command line that a person types."""
    parser = argparse.ArgumentParser(
        prog="dev.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="demo|serve|test|train|bench")
    commands.add_parser("demo", help="one photo becomes a word; writes a contact sheet")
    serving = commands.add_parser("serve", help="ComfyUI with this pack and the mini world, to click in")
    serving.add_argument("--port", type=port, help="default: a free one")
    for name, help_text in (("test", "ruff, mypy, pytest"), ("train", "a training"), ("bench", "a benchmark")):
        commands.add_parser(name, help=help_text, add_help=False)
    return parser


def run(description: str) -> int:
    """Runs the command in `sys.argv`."""
    parser = parser_of(description)
    ours = 2 if sys.argv[1:2] and sys.argv[1] in PASSED_ON else None
    arguments, rest = parser.parse_args(sys.argv[1:ours]), sys.argv[ours:] if ours else []
    if arguments.command == "demo":
        return hand_over("devtools.demo")
    if arguments.command == "serve":
        return hand_over("devtools.serve", *(["--port", str(arguments.port)] if arguments.port else []))
    if arguments.command == "test":
        return hand_over("devtools.checks", *rest)
    if arguments.command == "train":
        return hand_over("miniworld.train", *rest)
    if not rest or not (REPOSITORY / "benchmarks" / f"{rest[0]}.py").is_file():
        parser.error("bench needs the name of a benchmark, a module of the folder benchmarks/")
    return hand_over(f"benchmarks.{rest[0]}", *rest[1:])


def main(description: str) -> int:
    """The exit status of `dev.py`."""
    plain_output()
    # A polite kill ends what was started too, by way of the `finally` clauses.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("\nEnded by a signal."))
    try:
        return run(description)
    except Failure as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("\nEnded.")
        return 130
