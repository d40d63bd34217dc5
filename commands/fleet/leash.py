"""Holds a program that has to end with the process that started it, however that one ended.

``python leash.py FOLDER PROGRAM ARGUMENTS...`` runs the program until standard input is closed, as the system does for
whoever holds its other end. Then it ends the program, and removes the folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading

STOP_SECONDS = 10.0


def main(folder: str, command: list[str]) -> int:
    """Runs the command; returns its exit status."""
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def wait_for_the_owner() -> None:
        # Without a buffer: its lock would be held while the interpreter ends.
        while os.read(0, 4096):
            pass
        program.terminate()
        try:
            program.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            program.kill()

    threading.Thread(target=wait_for_the_owner, daemon=True).start()
    try:
        return program.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2:]))
