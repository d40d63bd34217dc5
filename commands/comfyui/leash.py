"""Holds a program that has to end with whoever started it, however that one ended.

``python leash.py FOLDER LOG PROGRAM ARGUMENTS...`` runs the program until standard input is closed, as the system does for
whoever holds its other end. Then it ends the program, and removes the folder and the log;
the log stays where the program ended by itself. Standard output gets the program's process id,
and is closed when the program has ended.

Ray kills the children of a worker that ends, and would kill the leash before it could do its work; so it is nobody's child.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading

STOP_SECONDS = 10.0
HELD = "--held"


def hold(folder: str, log: str, command: list[str]) -> None:
    """Runs the command, to its end or that of standard input."""
    with open(log, "wb") as said:
        program = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
    os.write(sys.stdout.fileno(), f"{program.pid}\n".encode())

    is_over = threading.Event()

    def wait_for_the_owner() -> None:
        # Without a buffer: its lock would be held while the interpreter ends.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        is_over.set()
        program.terminate()
        try:
            program.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            program.kill()

    threading.Thread(target=wait_for_the_owner, daemon=True).start()
    try:
        program.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_over.is_set():
            os.unlink(log)


def main(arguments: list[str]) -> None:
    """The leash, or what lets it go."""
    if arguments[0] == HELD:
        hold(arguments[1], arguments[2], arguments[3:])
    else:
        subprocess.Popen([sys.executable, __file__, HELD, *arguments], start_new_session=True)


if __name__ == "__main__":
    main(sys.argv[1:])
