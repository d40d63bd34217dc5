"""`dev.py serve`: ComfyUI with this pack and the mini world, left running until Ctrl-C; runs in `.venv`."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from . import miniworld_setup
from .comfyui_server import Server, has_gpu
from .console import Failure, say, step
from .places import BASE, LOGS, PACK_NAME

TEMPLATE = f"?template=one_photo&source={PACK_NAME}"
"""What opens the shipped workflow when it follows ComfyUI's address. Saved workflows are the person's own."""


def serve(comfyui: Path, base: Path, log: Path, port: int | None = None) -> None:
    """Sets up the base directory and runs ComfyUI there until KeyboardInterrupt; a free port without `port`.

    Raises: Failure if it cannot be started or ends by itself.
    """
    miniworld_setup.set_up(base)
    server = Server(comfyui, base, log, port, cpu=not has_gpu())
    with step("starting ComfyUI on the loopback interface"):
        server.start()
    try:
        say(f"ComfyUI is running. Open the shipped workflow: {server.client.url}/{TEMPLATE}")
        say(
            "The mini world's domains are mini_faces and mini_cats; mini_photo.png is a face, mini_cat_photo.png a cat."
        )
        say(f"What it says goes to {server.log}, its pictures to {base / 'output'}. Ctrl-C ends ComfyUI.")
        while server.running():
            time.sleep(0.5)
        raise Failure(f"ComfyUI ended by itself; what it said last is in {server.log}.")
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="devtools.serve", description=__doc__)
    parser.add_argument("--port", type=int)
    try:
        port = parser.parse_args().port
        serve(Path(os.environ["COMFYUI_PATH"]), BASE, LOGS / "comfyui-serve.log", port)
    except KeyboardInterrupt:
        # How a server is meant to be ended.
        say("\nEnded.")


if __name__ == "__main__":
    main()
