"""`dev.py test`: ruff, mypy and pytest, all of them even if one fails; runs in `.venv`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from .console import say
from .places import REPOSITORY

# Files of tests side by side, a core for each, in the order they are given; more processes than this would need more memory
# than they save time.
SIDE_BY_SIDE = (
    *("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder"),
    # A process that crashes ends the run: with another in its place, the run would wait for ever.
    *("--max-worker-restart", "0"),
)
FIRST = ("server", "benchmarks", "comfyui", "commands")
"""Folders of tests that take longest: at the end no process is then left alone with a long file."""
LAST_WORD_SECONDS = 30.0
"""How long a check may take to end after Ctrl-C; pytest stops servers and says what passed so far."""


def check(arguments: list[str]) -> int:
    """Runs the checks, pytest with `arguments` or on everything; 0 if none failed."""
    if not arguments:
        # Each process has a core; with threads on all cores they would wait for one another.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    checks = {
        "ruff check": ("ruff", "check", "."),
        "ruff format": ("ruff", "format", "--check", "."),
        f"mypy: {', '.join(typed())}": ("mypy",),
        "mypy: nodes, as ComfyUI imports them": ("devtools.pack_types",),
        "pytest": ("pytest", "--import-mode=importlib", *(arguments or (*SIDE_BY_SIDE, "--durations", "15", *suite()))),
    }
    failed = []
    for name, command in checks.items():
        start = time.monotonic()
        say(f"· {name}")
        if run([sys.executable, "-m", *command]) != 0:
            failed.append(name)
        say(f"· {name}: {'FAILED' if name in failed else 'ok'}, {time.monotonic() - start:.1f} s")
    say(f"Failed: {', '.join(failed)}." if failed else "Everything passed.")
    return 1 if failed else 0


def typed() -> list[str]:
    """What plain mypy checks: all rooms but the nodes, see :mod:`devtools.pack_types`."""
    import tomllib

    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    return [str(path) for path in settings["tool"]["mypy"]["files"]]


def suite(tests: Path = REPOSITORY / "tests") -> list[str]:
    """Every folder and file of tests, those first that take longest."""
    inside = {path.relative_to(tests).parts[0] for path in tests.rglob("test_*.py")}
    return [
        str(tests / name)
        for name in sorted(inside, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    ]


def run(command: list[str]) -> int:
    """The exit status of `command`. Ctrl-C reaches it too; it gets time to come to an end of its own."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except BaseException:
        try:
            process.wait(LAST_WORD_SECONDS)
        finally:
            process.kill()
        raise


if __name__ == "__main__":
    sys.exit(check(sys.argv[1:]))
