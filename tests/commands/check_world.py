"""Small random files for `python -m commands.check`, in folders whose names nobody else should read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "server"))

from random_files import write_random_domain, write_random_photo

from miniworld.checkpoint import write_random_checkpoint

# A shell has what it starts in the background ignore Ctrl-C, and what tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".dev" / "comfyui")
SECRET = "Jürgen Xylander"
"""Of a person's folders and photo."""


class CheckWorld:
    """A checkpoint, a domain and a photo of random values.

    Args:
        folder: for them; everything lies in a folder with a person's name, and so does the report.
    """

    def __init__(self, folder: Path) -> None:
        self.home = folder / SECRET
        self.home.mkdir(parents=True)
        self.checkpoint, self.domain = self.home / "base.safetensors", self.home / "faces.safetensors"
        self.photo, self.out = self.home / f"{SECRET} at home.png", self.home / "out"
        write_random_checkpoint(self.checkpoint)
        write_random_domain(self.domain, self.checkpoint)
        write_random_photo(self.photo)

    def command(self, *more: str) -> list[str]:
        """The check of them; what is said again in `more` counts."""
        files = {
            "comfyui": COMFYUI,
            "checkpoint": self.checkpoint,
            "domain": self.domain,
            "photo": self.photo,
            "out": self.out,
        }
        given = [part for name, path in files.items() for part in (f"--{name}", str(path))]
        return [sys.executable, "-m", "commands.check", *given, "--cpu", *more]

    def environment(self) -> dict[str, str]:
        """A person whose home it is."""
        return {**os.environ, "HOME": str(self.home), "USER": SECRET, "LOGNAME": SECRET, "PYTHONIOENCODING": "utf-8"}

    def run(self, *more: str) -> subprocess.CompletedProcess[str]:
        """The command, ended."""
        return subprocess.run(
            self.command(*more),
            cwd=ROOT,
            env=self.environment(),
            encoding="utf-8",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )

    def report(self) -> str:
        """What it wrote."""
        return (self.out / "report.html").read_text(encoding="utf-8")
