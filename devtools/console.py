"""What a person sees: each step, what it does, how long it took, and one sentence when it cannot go on."""

from __future__ import annotations

import contextlib
import errno
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TICK_SECONDS = 1.0
"""How often the seconds of a running step are redrawn on a terminal."""
NOTE_WIDTH = 24
"""Room beside the seconds; what is redrawn has to cover what stood there before."""

UNREACHABLE = ("name resolution", "getaddrinfo", "network is unreachable", "newconnection", "(from versions: none)")
"""What pip writes, in lower case, when no registry answers."""

EXCEPTION_NAME = re.compile(r"^[\w.]+(Error|Exception): ")
"""How Python begins the last line of a traceback, before the sentence."""


class Failure(Exception):
    """A step that cannot go on; its text is the one sentence the person reads."""


def plain_output() -> None:
    """Lets an output that lacks a character (an old console, a pipe) show another in its place."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def say(text: str) -> None:
    """One line, at once (the output may be a pipe)."""
    print(text, flush=True)


@contextlib.contextmanager
def step(title: str) -> Iterator[Callable[[str], None]]:
    """Announces `title`, then the seconds it took. On a terminal the seconds count up while it runs, and what the
    yielded function was told last ("4 of 15") stands beside them.

    Raises: Failure with one sentence if the disk is full; any other exception as it came.
    """
    start = time.monotonic()
    on_terminal = sys.stdout.isatty()
    done = threading.Event()
    notes = [""]

    def tick() -> None:
        while not done.wait(TICK_SECONDS):
            print(f"\r· {title} … {time.monotonic() - start:.0f} s{notes[-1]:{NOTE_WIDTH}}", end="", flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    print(f"· {title} …", end="" if on_terminal else "\n", flush=True)
    if on_terminal:
        ticker.start()
    outcome = "stopped after"
    try:
        yield lambda note: notes.append(f", {note}")
        outcome = "done in"
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise Failure(f"The disk is full ({title}); free some space and run the same command again.") from error
        raise
    finally:
        done.set()
        if on_terminal:
            ticker.join()
        line = f"· {title}: {outcome} {time.monotonic() - start:.1f} s"
        say(f"\r{line:{len(title) + NOTE_WIDTH + 12}}" if on_terminal else line)


def run_quietly(
    command: list[str], log: Path, failed: str, cwd: Path | None = None, inherited: tuple[int, ...] = ()
) -> None:
    """Runs `command`, its output going to the file `log`; it keeps the files `inherited` open (see `Lock`).

    Raises: Failure that begins with `failed` and names the reason and the log, when the command does not succeed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        status = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            pass_fds=inherited,
        ).returncode
    if status != 0:
        raise Failure(f"{failed}: {reason(log.read_text(encoding='utf-8', errors='replace'))} (all of it: {log}).")


def reason(output: str) -> str:
    """The line of a program's output that tells a person what went wrong, or a plainer wording of it."""
    lowered = output.lower()
    if "no space left on device" in lowered or "not enough space on the disk" in lowered or "errno 28" in lowered:
        return "the disk is full; free some space and run the same command again"
    if any(sign in lowered for sign in UNREACHABLE):
        return "the package registry could not be reached; check the network and run the same command again"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR", "error:", "Error"))]
    return EXCEPTION_NAME.sub("", (errors or lines or ["it said nothing"])[-1].removeprefix("ERROR: ")).rstrip(".")
