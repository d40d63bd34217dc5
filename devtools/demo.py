"""`dev.py demo`: one photo becomes a word in a real ComfyUI, and four prompts use it; runs in `.venv`."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import miniworld_setup
from .comfyui_client import Client, Rejected, Run, Workflow
from .comfyui_server import Server, has_gpu
from .console import Failure, say, step
from .lock import Lock
from .miniworld_setup import PHOTO
from .places import BASE, DEMO_OUTPUT, LOGS, REPOSITORY, WORKFLOWS, venv_python

WORD = "S*"
DOMAIN_WORD = "face"
PROMPTS = (
    "a photo of {}, green background",
    "a watercolor of {}",
    "a pencil sketch of {}",
    "a photo of {}, wearing a crown, purple background",
)
"""What is asked for; "{}" is the word in one row and the domain's word in the other."""
FIRST_SEED = 1


def run_demo(comfyui: Path) -> Path:
    """Tunes, samples, saves pictures and `demo.json` in `.dev/demo`; returns the contact sheet's path.

    Raises: Failure if ComfyUI refuses or fails a workflow.
    """
    workflow: Workflow = json.loads((WORKFLOWS / "api" / "one_photo.json").read_text(encoding="utf-8"))
    shutil.rmtree(DEMO_OUTPUT, ignore_errors=True)
    DEMO_OUTPUT.mkdir(parents=True)
    shutil.copy(BASE / PHOTO, DEMO_OUTPUT / "photo.png")
    server = Server(comfyui, BASE, LOGS / "comfyui-demo.log", cpu=not has_gpu())
    with step("starting ComfyUI on the loopback interface"):
        server.start()
    try:
        rows, seconds = draw_rows(server.client, workflow)
    except (ConnectionError, TimeoutError) as error:
        raise Failure(f"ComfyUI stopped answering ({error}); what it said last is in {server.log}.") from error
    finally:
        server.stop()
    say(
        f"  tuning (nothing stored beforehand): {seconds['tuning']:.1f} s; "
        f"sampling: {seconds['word']:.1f} s a picture with {WORD}, {seconds['face']:.1f} s with “{DOMAIN_WORD}”"
    )
    report = {"photo": "photo.png", "word": WORD, "domain_word": DOMAIN_WORD, "rows": rows, "seconds": seconds}
    (DEMO_OUTPUT / "demo.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return finish(DEMO_OUTPUT)


def draw_rows(client: Client, workflow: Workflow) -> tuple[dict[str, list[dict[str, Any]]], dict[str, float]]:
    """Both rows of pictures, saved in `.dev/demo`, and the seconds of tuning and of sampling one picture."""
    personalize = only_node(workflow, "E4TPersonalize")
    sampler = only_node(workflow, "KSampler")
    rows: dict[str, list[dict[str, Any]]] = {"word": [], "face": []}
    seconds = {"tuning": 0.0, "word": 0.0, "face": 0.0}
    for row, subject, arm in (("word", WORD, workflow), ("face", DOMAIN_WORD, without_personalization(workflow))):
        for i, prompt in enumerate(PROMPTS):
            text, seed = prompt.format(subject), FIRST_SEED + i
            with step(f"“{text}”, seed {seed}") as note:
                run = run_or_fail(client, with_prompt(arm, text, seed), note)
            name = f"{row}_{i + 1}.png"
            (DEMO_OUTPUT / name).write_bytes(client.view(first_image(run)))
            rows[row].append({"prompt": text, "seed": seed, "image": name})
            seconds["tuning"] += run.seconds.get(personalize, 0.0)
            # The first run of a row also loads what it needs; the others tell what a picture costs.
            seconds[row] += run.seconds.get(sampler, 0.0) / (len(PROMPTS) - 1) if i > 0 else 0.0
    return rows, seconds


def only_node(workflow: Workflow, class_type: str) -> str:
    """The id of the first node of a class."""
    return next(node for node, content in workflow.items() if content["class_type"] == class_type)


def with_prompt(workflow: Workflow, text: str, seed: int) -> Workflow:
    """`workflow` with another positive prompt and another sampling seed."""
    changed = copy.deepcopy(workflow)
    sampler = changed[only_node(changed, "KSampler")]["inputs"]
    sampler["seed"] = seed
    changed[sampler["positive"][0]]["inputs"]["text"] = text
    return changed


def without_personalization(workflow: Workflow) -> Workflow:
    """The same workflow with MODEL and CLIP taken straight from the checkpoint, and no E4T node in it."""
    personalize = only_node(workflow, "E4TPersonalize")
    stock = {0: workflow[personalize]["inputs"]["model"], 1: workflow[personalize]["inputs"]["clip"]}
    kept: Workflow = {}
    for node, content in workflow.items():
        if content["class_type"].startswith("E4T"):
            continue
        inputs = {
            name: stock[value[1]] if isinstance(value, list) and value[0] == personalize else value
            for name, value in content["inputs"].items()
        }
        kept[node] = {**content, "inputs": inputs}
    return kept


def run_or_fail(client: Client, workflow: Workflow, note: Callable[[str], None]) -> Run:
    """Runs `workflow`, telling `note` how far it is; Failure with ComfyUI's own sentence if it does not succeed."""

    def tell(node: str, value: float, maximum: float) -> None:
        work = {"E4TPersonalize": "tuning", "KSampler": "sampling"}.get(workflow[node]["class_type"], "working")
        note(f"{work} {value:.0f} of {maximum:.0f}")

    try:
        run = client.run(workflow, tell)
    except Rejected as error:
        raise Failure(str(error)) from error
    if run.status != "success":
        what = f"{run.error.get('node_type')}: {run.error.get('exception_message', '').strip()}"
        raise Failure(f"The workflow was not finished ({run.status}); {what}")
    return run


def first_image(run: Run) -> dict[str, str]:
    """The picture that SaveImage saved (the preview of what is learned from is of the type "temp")."""
    images = [image for output in run.outputs.values() for image in output.get("images", [])]
    return next(image for image in images if image["type"] == "output")


def finish(folder: Path) -> Path:
    """Contact sheet and scores, made in `.venv` because they need Pillow and torch."""
    sheet = folder / "contact_sheet.png"
    with step("putting the contact sheet together"):
        command = [str(venv_python()), "-m", "benchmarks.contact_sheet", str(folder / "demo.json"), str(sheet)]
        if subprocess.run(command, cwd=REPOSITORY, check=False).returncode != 0:
            raise Failure(f"The contact sheet could not be made; the pictures are in {folder}.")
    with step("scoring the pictures"):
        command = [str(venv_python()), "-m", "benchmarks.score", str(folder / "demo.json")]
        if subprocess.run(command, cwd=REPOSITORY, check=False).returncode != 0:
            raise Failure(f"The pictures could not be scored; they are in {folder}.")
    return sheet


def main() -> None:
    """The whole demo, with the seconds of its parts; two at once would write into the same folder."""
    start = time.monotonic()
    with Lock(DEMO_OUTPUT.with_name("demo.lock"), "another demo that writes into the same .dev"):
        miniworld_setup.set_up(BASE)
        say(f"  set-up: {time.monotonic() - start:.1f} s")
        sheet = run_demo(Path(os.environ["COMFYUI_PATH"]))
    say(f"All done in {time.monotonic() - start:.1f} s. The contact sheet: {sheet}")


if __name__ == "__main__":
    main()
