"""``python -m benchmarks.batch``: many jobs on one ComfyUI and on a fleet of two, with and without processes that are killed.

Held-out faces of the mini world and prompts, by the shipped workflow with few steps of learning; what is asked is not what
the pictures show, but whether each is there once, and what ends and fleets cost:

* ``night``: one server; the command is killed, started again, the server is killed and started again, the command is killed
  once more. Every job has to be drawn and written down once.
* ``one``: the command alone, from its start to its end, on a server that runs already.
* ``fleet``: ``commands.fleet`` on this machine, two seats of one core each, with the start of Ray and of two servers.
* ``lost``: the same, and when a third of the jobs is done, one of Ray's workers is killed.

Needs ray; no GPU is used.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from devtools.comfyui_server import Server, prepare_base
from devtools.comfyui_source import find_or_fetch
from devtools.places import REPOSITORY, WORKFLOWS
from miniworld.heldout import concept_photo, held_out
from miniworld.setup import set_up

from .report import gate, table

PARTS = ("night", "one", "fleet", "lost")
PROMPTS = ("a photo of S*, green background", "a watercolor of S*", "a pencil sketch of S*", "S* with a crown")
READY = re.compile(r"Seat \d+: node \S+, worker (\d+), server \d+")
SECONDS = 3600.0


class Jobs:
    """Photos, prompts and the workflow in a folder."""

    def __init__(self, folder: Path, photos: int, prompts: int, steps: int) -> None:
        self.folder, self.count, self.photos = folder, photos * prompts, photos
        (folder / "photos").mkdir(parents=True, exist_ok=True)
        for number in range(photos):
            pixels = (concept_photo(held_out("face")[number])[1] * 255).round().byte().permute(1, 2, 0)
            Image.fromarray(pixels.contiguous().numpy()).save(folder / "photos" / f"face_{number:02}.png")
        (folder / "prompts.csv").write_text("\n".join(["prompt", *(f'"{text}"' for text in PROMPTS[:prompts])]))
        workflow = json.loads((WORKFLOWS / "api" / "one_photo.json").read_text(encoding="utf-8"))
        workflow["30"] = {
            "class_type": "E4TSettings",
            "inputs": {"steps": steps, "find_subject": "off"},
        }
        workflow["4"]["inputs"]["settings"] = ["30", 0]
        workflow["8"]["inputs"]["steps"] = 4
        (folder / "workflow.json").write_text(json.dumps(workflow))

    def command(self, name: str, out: Path, *more: str) -> list[str]:
        """``commands.batch`` or ``commands.fleet`` over all of them."""
        return [
            *(sys.executable, "-m", f"commands.{name}", "--workflow", str(self.folder / "workflow.json"), *more),
            *(
                "--images",
                str(self.folder / "photos"),
                "--prompts",
                str(self.folder / "prompts.csv"),
                "--out",
                str(out),
            ),
        ]


class Command:
    """A command under way, with what it says in a file."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log, self.begun = log, time.monotonic()
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        with log.open("ab") as said:
            self.process = subprocess.Popen(
                command, cwd=REPOSITORY, stdout=said, stderr=subprocess.STDOUT, env=environment
            )

    def said(self) -> str:
        """All that was said."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def until(self, happened: Callable[[], bool]) -> float:
        """Waits; the seconds since it began."""
        while not happened():
            if self.process.poll() is not None or time.monotonic() - self.begun > SECONDS:
                raise SystemExit(f"The command ended too soon: {self.said()[-2000:]}")
            time.sleep(0.1)
        return time.monotonic() - self.begun

    def kill(self) -> None:
        """Ends it at once."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> float:
        """Waits for its good end; the seconds since it began."""
        if self.process.wait(SECONDS) != 0:
            raise SystemExit(f"The command failed: {self.said()[-2000:]}")
        return time.monotonic() - self.begun


def lines(out: Path) -> list[dict[str, Any]]:
    """The report so far."""
    report = out / "report.jsonl"
    text = report.read_text(encoding="utf-8") if report.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def right(jobs: Jobs, out: Path) -> bool:
    """Prints whether every job is there once."""
    written = lines(out)
    pictures = {path.relative_to(out).as_posix() for path in out.glob("*/*.png")}
    most = max(Counter(line["job"] for line in written).values())
    met = gate("  jobs in the report", len({line["job"] for line in written}), least=jobs.count)
    met &= gate("  lines of one job", most, most=1)
    met &= gate("  jobs that failed", sum(line["error"] is not None for line in written), most=0)
    return met & gate(
        "  pictures that have a line", len(pictures & {line["file"] for line in written}), least=jobs.count
    )


def drawn(log: Path) -> int:
    """How many jobs a server has finished."""
    return log.read_text(encoding="utf-8", errors="replace").count("Prompt executed in")


def learned(log: Path) -> int:
    """How often it has learned a photo."""
    return log.read_text(encoding="utf-8", errors="replace").count("learned in")


def night(jobs: Jobs, comfyui: Path, base: Path, runs: Path) -> bool:
    """One server and one command, both killed."""
    out, said, logs = runs / "night", runs / "night.log", [runs / "night_1.log", runs / "night_2.log"]
    begun = time.monotonic()
    with Server(comfyui, base, logs[0]) as first:
        port, url = first.client.port, first.client.url
        command = jobs.command("batch", out, "--server", url)
        client = Command(command, said)
        client.until(lambda: len(lines(out)) >= jobs.count // 4)
        client.kill()
        # What is in the queue is drawn meanwhile.
        time.sleep(5)
        client = Command(command, said)
        client.until(lambda: len(lines(out)) >= jobs.count // 2)
        first.kill()
    with Server(comfyui, base, logs[1], port):
        client.until(lambda: len(lines(out)) >= 3 * jobs.count // 4)
        client.kill()
        client = Command(command, said)
        client.end()
    print(f"night: {jobs.count} jobs in {time.monotonic() - begun:.0f} s, with two starts of ComfyUI")
    met = right(jobs, out)
    met &= gate("  jobs that servers finished", sum(map(drawn, logs)), most=jobs.count)
    return met & gate("  times that a photo was learned", sum(map(learned, logs)), most=jobs.photos + 1)


def one(jobs: Jobs, comfyui: Path, base: Path, runs: Path) -> tuple[str, float, float]:
    """The command on a server that runs."""
    with Server(comfyui, base, runs / "one_server.log") as server:
        command = Command(jobs.command("batch", runs / "one", "--server", server.client.url), runs / "one.log")
        return "one server", 0.0, command.end()


def fleet(jobs: Jobs, comfyui: Path, base: Path, out: Path, kills: bool) -> tuple[str, float, float]:
    """Two seats; its row: name, seconds until both were there, seconds in all."""
    log = out.with_suffix(".log")
    places = ("--comfyui", str(comfyui), "--base-directory", str(base), "--seats", "2", "--cpu")
    command = Command(jobs.command("fleet", out, *places), log)
    start = command.until(lambda: len(READY.findall(command.said())) == 2)
    if kills:
        command.until(lambda: len(lines(out)) >= jobs.count // 3)
        os.kill(int(READY.findall(command.said())[1]), signal.SIGKILL)
    return "two seats, one lost" if kills else "two seats", start, command.end()


def same(first: Path, second: Path) -> int:
    """How many pictures are the same bit for bit."""
    names = [line["file"] for line in lines(first)]
    opened = [[Image.open(folder / name).convert("RGB").tobytes() for name in names] for folder in (first, second)]
    return sum(a == b for a, b in zip(*opened, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="of %(default)s")
    parser.add_argument("--photos", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="of learning each photo")
    parser.add_argument(
        "--runs", type=Path, default=REPOSITORY / "runs" / "batch", help="a new folder for what is made"
    )
    options = parser.parse_args()
    # ComfyUI runs in a folder of its own.
    options.runs = options.runs.resolve()
    options.runs.mkdir(parents=True)
    base, comfyui = options.runs / "comfyui", find_or_fetch()
    prepare_base(base)
    set_up(base)
    jobs = Jobs(options.runs, options.photos, options.prompts, options.steps)
    met, rows = True, []
    for part in options.parts.split(","):
        if part == "night":
            met &= night(jobs, comfyui, base, options.runs)
            continue
        made = (
            one(jobs, comfyui, base, options.runs)
            if part == "one"
            else fleet(jobs, comfyui, base, options.runs / part, kills=part == "lost")
        )
        rows.append(
            [made[0], f"{made[1]:.0f}", f"{made[2] - made[1]:.0f}", f"{jobs.count / (made[2] - made[1]) * 60:.1f}"]
        )
        print(f"{part}:")
        met &= right(jobs, options.runs / part)
        # A seat has one core: with two, sums are rounded in another order.
        if part == "lost" and (options.runs / "fleet").exists():
            print(
                f"  {same(options.runs / 'fleet', options.runs / part)} of {jobs.count} pictures are those of two seats bit for bit"
            )
    if rows:
        print(
            f"\n{os.cpu_count()} cores, {options.photos} photos, {options.prompts} prompts, {options.steps} steps of learning\n"
        )
        print(table(["", "start, s", "then, s", "jobs a minute"], rows))
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
