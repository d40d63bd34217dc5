"""Photos, prompts and a cheap workflow for `python -m commands.batch`, and the command as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from devtools.comfyui_client import Workflow
from devtools.places import REPOSITORY

Line = dict[str, Any]


class BatchWorld:
    """A folder with photos of noise, prompts and a workflow; `workflow` is the shipped one with its inputs changed."""

    def __init__(self, folder: Path, workflow: Workflow, photos: int, prompts: list[str]) -> None:
        self.folder, self.out = folder, folder / "out"
        (folder / "photos").mkdir(parents=True)
        for number in range(photos):
            pixels = np.random.default_rng(number).integers(0, 256, (96, 96, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / f"person_{number:02}.png")
        (folder / "prompts.csv").write_text("\n".join(["prompt", *prompts]), encoding="utf-8")
        (folder / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")

    def command(self, server: str, *more: str) -> list[str]:
        """The command that draws all of it."""
        return [
            *(
                sys.executable,
                "-m",
                "commands.batch",
                "--server",
                server,
                "--workflow",
                str(self.folder / "workflow.json"),
            ),
            *("--images", str(self.folder / "photos"), "--prompts", str(self.folder / "prompts.csv")),
            *("--out", str(self.out), *more),
        ]

    def fleet(self, comfyui: Path, base: Path, *more: str) -> list[str]:
        """The same jobs on servers of its own, on processors."""
        made = self.command("", *more)
        at = made.index("--server")
        made = ["commands.fleet" if part == "commands.batch" else part for part in [*made[:at], *made[at + 2 :]]]
        return [*made, "--comfyui", str(comfyui), "--base-directory", str(base), "--cpu"]

    def start(self, server: str, *more: str) -> subprocess.Popen[str]:
        """The command, under way."""
        return subprocess.Popen(
            self.command(server, *more), cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, server: str, *more: str) -> subprocess.CompletedProcess[str]:
        """The command, ended; what it said is in `stdout`."""
        return subprocess.run(
            self.command(server, *more),
            cwd=REPOSITORY,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )

    def lines(self) -> list[Line]:
        """The report."""
        report = self.out / "report.jsonl"
        if not report.exists():
            return []
        return [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]

    def pictures(self) -> list[str]:
        """The pictures that there are, relative to the folder."""
        return sorted(path.relative_to(self.out).as_posix() for path in self.out.glob("*/*.png"))
