#!/usr/bin/env python3
"""Everything that is done with a clone of this repository, on Linux, macOS and Windows, with Python 3.11 or newer.

    python3 dev.py demo            one photo becomes a word in a real ComfyUI; writes a contact sheet
    python3 dev.py serve           the same ComfyUI with this pack and the mini world, for you to click in
    python3 dev.py test [ARGS]     ruff, mypy and pytest; ARGS go to pytest
    python3 dev.py train WHAT ...  one of the mini world's trainings (python -m miniworld.train WHAT ...)
    python3 dev.py bench WHAT ...  one of the benchmarks (python -m benchmarks.WHAT ...)

The first call makes .venv and installs what is needed (about 8 GB on Linux); later calls redo nothing. A ComfyUI is
taken from COMFYUI_PATH, from around this folder if it lies in a ComfyUI's custom_nodes, or fetched. Everything made
lies in .venv and .dev inside this folder; delete both to start afresh.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from devtools import comfyui_source, demo, environment, miniworld_setup
from devtools.comfyui_server import Server, has_gpu
from devtools.console import Failure, say, step
from devtools.places import BASE, LOGS, REPOSITORY, WORKFLOWS, venv_python

# Files of tests side by side, a core for each; more processes than this would need more memory than they save time.
WHOLE_SUITE = ["tests", "-n", "logical", "--maxprocesses", "4", "--dist", "loadfile", "--durations", "15"]


def set_up() -> Path:
    """Makes the virtual environment and finds or fetches ComfyUI; returns ComfyUI's folder."""
    venv_is_new = environment.make_venv()
    comfyui = comfyui_source.find_or_fetch()
    environment.install(comfyui, venv_is_new)
    return comfyui


def run_in_venv(comfyui: Path, *arguments: str) -> int:
    """Runs `.venv`'s Python with `arguments` in the repository; the exit status."""
    return subprocess.run(
        [str(venv_python()), *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "COMFYUI_PATH": str(comfyui)},
        check=False,
    ).returncode


def run_demo() -> int:
    """The whole demo, with the seconds of its parts."""
    start = time.monotonic()
    comfyui = set_up()
    miniworld_setup.set_up(BASE)
    say(f"  set-up: {time.monotonic() - start:.1f} s")
    sheet = demo.run_demo(comfyui)
    say(f"All done in {time.monotonic() - start:.1f} s. The contact sheet: {sheet}")
    return 0


def serve(port: int | None) -> int:
    """Leaves ComfyUI running until Ctrl-C."""
    comfyui = set_up()
    miniworld_setup.set_up(BASE)
    shutil.copy(WORKFLOWS / "one_photo.json", BASE / "user" / "default" / "workflows" / "one_photo.json")
    server = Server(comfyui, BASE, LOGS / "comfyui-serve.log", port, cpu=not has_gpu())
    with step("starting ComfyUI on the loopback interface"):
        server.start()
    try:
        say(f"ComfyUI is running: {server.client.url}")
        say("Open the workflow “one_photo” (Workflows, at the left; or Templates > comfyui-e4t). Ctrl-C ends ComfyUI.")
        say(f"What it says goes to {server.log}, its pictures to {BASE / 'output'}.")
        while server.running():
            time.sleep(0.5)
        raise Failure(f"ComfyUI ended by itself; what it said last is in {server.log}.")
    finally:
        server.stop()


def test(arguments: list[str]) -> int:
    """ruff, mypy and pytest, all of them even if one fails; 0 if none did."""
    comfyui = set_up()
    if not arguments:
        # Each process has a core; with threads on all cores they would wait for one another.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    checks = {
        "ruff check": ("-m", "ruff", "check", "."),
        "ruff format": ("-m", "ruff", "format", "--check", "."),
        "mypy": ("-m", "mypy"),
        "pytest": ("-m", "pytest", "--import-mode=importlib", *(arguments or WHOLE_SUITE)),
    }
    failed = []
    for name, command in checks.items():
        start = time.monotonic()
        say(f"· {name}")
        if run_in_venv(comfyui, *command) != 0:
            failed.append(name)
        say(f"· {name}: {'FAILED' if name in failed else 'ok'}, {time.monotonic() - start:.1f} s")
    say(f"Failed: {', '.join(failed)}." if failed else "Everything passed.")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="demo|serve|test|train|bench")
    commands.add_parser("demo", help="one photo becomes a word; writes a contact sheet")
    serving = commands.add_parser("serve", help="ComfyUI with this pack and the mini world, to click in")
    serving.add_argument("--port", type=int, help="default: a free one")
    for name, help_text in (("test", "ruff, mypy, pytest"), ("train", "a training"), ("bench", "a benchmark")):
        commands.add_parser(name, help=help_text, add_help=False)
    # What stands behind these three is for the program they start, options and all.
    ours = 2 if sys.argv[1:2] and sys.argv[1] in ("test", "train", "bench") else None
    arguments, rest = parser.parse_args(sys.argv[1:ours]), sys.argv[ours:] if ours else []
    # A polite kill ends ComfyUI too, by way of the `finally` clauses.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("\nEnded by a signal."))
    try:
        if arguments.command == "demo":
            return run_demo()
        if arguments.command == "serve":
            return serve(arguments.port)
        if arguments.command == "test":
            return test(rest)
        if arguments.command == "train":
            return run_in_venv(set_up(), "-m", "miniworld.train", *rest)
        if not rest:
            parser.error("bench needs the name of a benchmark, a module of the folder benchmarks/")
        return run_in_venv(set_up(), "-m", f"benchmarks.{rest[0]}", *rest[1:])
    except Failure as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("\nEnded.")
        return 130 if arguments.command != "serve" else 0


if __name__ == "__main__":
    sys.exit(main())
