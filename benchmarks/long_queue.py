"""``python -m benchmarks.long_queue``: hundreds of queued prompts in one ComfyUI, some of them cancelled: does it stay well?

A server with the mini world gets jobs of five kinds in a random order, each with one of a few prompts and seeds:

* ``learn``: E4T Personalize on one of the photos, one step, and a picture;
* ``saved``: Load and Apply a concept that was kept before;
* ``two``: two kept concepts, one after the other;
* ``at .5``: a kept concept at half strength;
* ``stock``: no concept, the base model alone.

So a job comes again, under another number, after others have used the same base model. Every tenth is cancelled: taken from
the queue, or interrupted after a random time. The gates, set before the first run:

* each job's history says what became of it, and each finished one has its picture, bit for bit the one of its first time:
  for ``stock`` this means that the base is unharmed;
* the server's memory has no slope: its 95 % limits hold 0, or it would take less than 1 % of the memory over all jobs.

It leaves memory.csv (after each job, bytes) in its folder.
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import io
import json
import math
import os
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from commands.progress import Progress
from devtools.comfyui_client import Client, Workflow
from devtools.comfyui_server import Server, prepare_base
from devtools.comfyui_source import find_or_fetch
from devtools.places import REPOSITORY, WORKFLOWS
from miniworld.heldout import concept_photo, held_out
from miniworld.setup import save_picture, set_up

from .report import gate, table

KINDS = {"learn": 3, "saved": 4, "two": 1, "at .5": 1, "stock": 3}
"""How often each comes, as a share."""
PROMPTS = ("a photo of {}, green background", "a watercolor of {}", "a pencil sketch of {}")
SEEDS = 2
CANCELLED = 0.1
PHOTOS = 4
WARM = 100
"""Jobs at the start that do not count for the slope: what is filled once is not lost."""
WAITING = 6
"""Jobs that stand in the queue at most."""
SECONDS = 600.0


@dataclass(frozen=True)
class Job:
    """What is asked; equal jobs have equal pictures."""

    kind: str
    concept: int
    prompt: int
    seed: int


@dataclass
class Asked:
    """A job in the queue."""

    job: Job
    id: str
    cancel: str = ""
    """"queue": taken out of it; "run": interrupted; "": left alone."""


def jobs(count: int, chance: random.Random) -> list[Job]:
    """So many, drawn at random."""
    kinds = chance.choices(tuple(KINDS), tuple(KINDS.values()), k=count)
    return [
        Job(kind, chance.randrange(PHOTOS), chance.randrange(len(PROMPTS)), chance.randrange(SEEDS)) for kind in kinds
    ]


class Prompts:
    """The shipped workflow, changed for each job."""

    def __init__(self) -> None:
        shipped: Workflow = json.loads((WORKFLOWS / "api" / "one_photo.json").read_text(encoding="utf-8"))
        shipped["7"]["inputs"] |= {"width": 64, "height": 64}
        shipped["8"]["inputs"]["steps"] = 2
        shipped["10"] = {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}}
        self._shipped = shipped

    def learned(self, photo: int) -> Workflow:
        """With E4T Personalize of a photo."""
        made = copy.deepcopy(self._shipped)
        made["2"]["inputs"]["image"] = photo_name(photo)
        made["30"] = {"class_type": "E4TSettings", "inputs": {"steps": 1, "batch": 2, "find_subject": "off"}}
        made["4"]["inputs"]["settings"] = ["30", 0]
        return made

    def kept(self, photo: int) -> Workflow:
        """Learns a photo and keeps it."""
        made = self.learned(photo)
        made["31"] = {
            "class_type": "E4TSaveConcept",
            "inputs": {"concept": ["4", 2], "name": concept_name(photo), "keeps": "exact"},
        }
        return made

    def of(self, job: Job) -> Workflow:
        """A job's."""
        made, word, ends = self.learned(job.concept), "S*", ("4", "4")
        if job.kind != "learn":
            for unused in ("2", "3", "4", "30"):
                del made[unused]
            word, ends = "face", ("1", "1")
        if job.kind in ("saved", "two", "at .5"):
            word = "S*"
            concepts = [job.concept] if job.kind != "two" else [job.concept, (job.concept + 1) % PHOTOS]
            for number, concept in enumerate(concepts):
                made[f"4{number}"] = {
                    "class_type": "E4TLoadConcept",
                    "inputs": {"concept_name": concept_name(concept)},
                }
                strength = 0.5 if job.kind == "at .5" else 1.0
                made[f"5{number}"] = {
                    "class_type": "E4TApplyConcept",
                    "inputs": {
                        "model": [ends[0], 0],
                        "clip": [ends[1], 1],
                        "concept": [f"4{number}", 0],
                        "strength_model": strength,
                        "trigger": ("S*", "T*")[number],
                    },
                }
                ends = (f"5{number}", f"5{number}")
            if job.kind == "two":
                word = "S* and T*"
        for node in made.values():
            inputs = node["inputs"]
            if node["class_type"] == "CLIPTextEncode":
                inputs["clip"] = [ends[1], 1]
        made["5"]["inputs"]["text"] = PROMPTS[job.prompt].format(word)
        made["8"]["inputs"] |= {"model": [ends[0], 0], "seed": job.seed}
        return made


def photo_name(number: int) -> str:
    return f"face_{number}.png"


def concept_name(number: int) -> str:
    return f"kept_{number}"


class Queue:
    """Jobs under way on a server."""

    def __init__(self, server: Server, chance: random.Random) -> None:
        self._server, self._client, self._chance = server, server.client, chance
        self._prompts = Prompts()
        self._first: dict[Job, str] = {}
        self._again: dict[Job, int] = {}
        self.memory: list[int] = []
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.repeated = 0

    def all(self, wanted: list[Job]) -> None:
        """All of them, a few in the queue at a time."""
        waiting: list[Asked] = []
        left = iter(wanted)
        for _ in Progress(range(len(wanted)), desc="jobs"):
            while len(waiting) < WAITING and (job := next(left, None)) is not None:
                waiting.append(self._ask(job))
            self._see_to(waiting.pop(0))

    def _ask(self, job: Job) -> Asked:
        workflow = self._prompts.of(job)
        # ComfyUI would answer an equal job from its cache. Blanks mean nothing to the text encoder, but are another prompt to it.
        number = self._again[job] = self._again.get(job, -1) + 1
        workflow["6"]["inputs"]["text"] = " " * number
        asked = Asked(
            job, self._client.post("/prompt", {"prompt": workflow, "client_id": self._client.id})["prompt_id"]
        )
        if self._chance.random() < CANCELLED:
            asked.cancel = self._chance.choice(("queue", "run"))
            if asked.cancel == "queue":
                self._client.post("/queue", {"delete": [asked.id]})
        return asked

    def _see_to(self, asked: Asked) -> None:
        """Waits for a job's end and looks at it."""
        interrupt_at = self._chance.uniform(0.0, 1.5)
        deadline, begun = time.monotonic() + SECONDS, 0.0
        while not (entry := self._client.history(asked.id)):
            queue = json.loads(self._client.get("/queue"))
            runs = any(item[1] == asked.id for item in queue["queue_running"])
            waits = any(item[1] == asked.id for item in queue["queue_pending"])
            if runs and not begun:
                begun = time.monotonic()
            if runs and asked.cancel == "run" and time.monotonic() - begun >= interrupt_at:
                self._client.post("/interrupt", {"prompt_id": asked.id})
                asked.cancel = "run, interrupted"
            if not runs and not waits and not (entry := self._client.history(asked.id)):
                # Not in the queue and not in the history: a moment between the two, or taken out.
                time.sleep(0.3)
                if not (entry := self._client.history(asked.id)):
                    break
            if time.monotonic() > deadline:
                raise SystemExit(f"{asked.job} did not end in {SECONDS:.0f} s (see {self._server.log}).")
            time.sleep(0.25)  # asking costs the server time, too
        self._check(asked, entry)
        self.memory.append(self._server.memory())

    def _check(self, asked: Asked, entry: dict) -> None:
        if not entry:
            self.ends["taken out"] += 1
            if asked.cancel != "queue":
                self.wrong.append(f"{asked.job}: not in the history")
            return
        messages = [kind for kind, _ in entry["status"]["messages"]]
        if "execution_interrupted" in messages:
            self.ends["interrupted"] += 1
            if not asked.cancel.startswith("run") or entry["status"]["completed"]:
                self.wrong.append(f"{asked.job}: interrupted, but {asked.cancel or 'not cancelled'}")
            return
        if not entry["status"]["completed"] or "execution_success" not in messages:
            self.ends["failed"] += 1
            self.wrong.append(f"{asked.job}: {entry['status']}")
            return
        self.ends["finished"] += 1
        found = self._picture(entry)
        if found is None:
            self.wrong.append(f"{asked.job}: {entry['outputs']} has no single picture")
            return
        if asked.job in self._first:
            self.repeated += 1
        if self._first.setdefault(asked.job, found) != found:
            self.wrong.append(f"{asked.job}: another picture than the first time")

    def _picture(self, entry: dict) -> str | None:
        images = [image for output in entry["outputs"].values() for image in output.get("images", [])]
        drawn = [image for image in images if image["type"] == "temp" and image["filename"].startswith("ComfyUI_temp")]
        if len(drawn) != 1:
            return None
        with Image.open(io.BytesIO(self._client.view(drawn[0]))) as picture:
            return hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()


def slope(values: list[int]) -> tuple[float, float]:
    """Bytes per job by least squares, and half of its 95 % limits; neighbors are alike, so means of ten count as one value."""
    blocks = np.array(values[: len(values) // 10 * 10], dtype=float).reshape(-1, 10).mean(axis=1)
    at = np.arange(len(blocks)) * 10.0
    (rise, start), n = np.polyfit(at, blocks, 1), len(blocks)
    rest = blocks - (start + rise * at)
    error = math.sqrt((rest**2).sum() / (n - 2) / ((at - at.mean()) ** 2).sum())
    return float(rise), 1.96 * error


def keep_concepts(client: Client) -> None:
    """Learns and saves the concepts that jobs load."""
    for photo in range(PHOTOS):
        run = client.run(Prompts().kept(photo))
        if run.status != "success":
            raise SystemExit(f"Concept {photo} could not be kept: {run.error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500, help="60 at least, or memory has no slope")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "long_queue", help="a new folder")
    options = parser.parse_args()
    if options.jobs < 60:
        parser.error(f"{options.jobs} jobs are too few: 60 at least.")
    options.runs.mkdir(parents=True)
    base, chance = options.runs / "comfyui", random.Random(options.seed)
    prepare_base(base)
    set_up(base)
    for number in range(PHOTOS):
        save_picture(base / "input" / photo_name(number), concept_photo(held_out("face")[number])[1])
    # Freed tensors go back to the system at once, so that what the process holds can be measured (glibc, mallopt(3)).
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    begun = time.monotonic()
    with Server(find_or_fetch(), base, options.runs / "comfyui.log") as server:
        keep_concepts(server.client)
        queue = Queue(server, chance)
        queue.all(jobs(options.jobs, chance))
        errors = server.said().count("Traceback (most recent call last)")
    with (options.runs / "memory.csv").open("w", newline="") as file:
        csv.writer(file).writerows(enumerate(queue.memory))
    print(f"\n{options.jobs} jobs in {time.monotonic() - begun:.0f} s\n")
    print(table(("what became of them", "jobs"), sorted(queue.ends.items())))
    for line in queue.wrong[:20]:
        print(line)
    rise, limits = slope(queue.memory[min(WARM, options.jobs // 3) :])
    half = max(queue.memory)
    lost = max(abs(rise) - limits, 0.0) * options.jobs / half
    print(
        f"\n{queue.repeated} pictures were compared with those of their first time; at most {half / 2**30:.2f} GiB were held."
    )
    print(f"Memory rises by {rise / 2**10:+.1f} KiB a job (95 % limits {limits / 2**10:.1f} KiB to both sides).\n")
    met = gate("wrong entries or pictures", len(queue.wrong), most=0)
    met &= gate("errors in the log", errors, most=0)
    return 0 if met & gate("memory that all jobs lose for certain, as a share", lost, most=0.01) else 1


if __name__ == "__main__":
    raise SystemExit(main())
