"""`dev.py test`: ruff, mypy and pytest, all of them even if one fails; runs in `.venv`."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from .console import say

# Files of tests side by side, a core for each; more processes than this would need more memory than they save time.
WHOLE_SUITE = ("tests", "-n", "logical", "--maxprocesses", "4", "--dist", "loadfile", "--durations", "15")
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
        "mypy": ("mypy",),
        "pytest": ("pytest", "--import-mode=importlib", *(arguments or WHOLE_SUITE)),
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
