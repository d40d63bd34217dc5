"""The shipped workflow on a real ComfyUI: one photo is learned, and the same prompts are drawn with the word and without it.

The four pictures without it are the base model's own, from its stock nodes: where they are bad as well, the fault is not in
what was learned.
"""

from __future__ import annotations

import asyncio
import copy
import io
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from commands.batch.api_workflow import ApiWorkflow, Nodes, read_workflow
from commands.batch.faults import BatchError, Unreachable
from commands.batch.outcome import outcome
from commands.batch.results import Outcome
from commands.batch.server import Json, Server
from commands.comfyui.own_server import ComfyUI, Installation

from .child import ROOT
from .faults import CheckError
from .given import Given, Usable
from .parts import Drawn, Part

WORKFLOW = ROOT / "workflows" / "api" / "one_photo.json"
PROMPTS = ("a photo of {}", "a photo of {}, green background", "a pencil sketch of {}", "a watercolor of {}")
SEED = 1
"""Of the first prompt; the others count on."""
LEARNS, LOADS, DOMAIN, PHOTO, SIZE = (
    "E4TPersonalize",
    "CheckpointLoaderSimple",
    "E4TLoadDomain",
    "LoadImage",
    "EmptyLatentImage",
)
PANEL, TEXTS = "e4t_learning", "e4t_texts"
"""Where the history of a job keeps what nodes that learn, and others, have said."""
LOOK_SECONDS = 0.5
TRIES = 3
OUT_OF_MEMORY = "OutOfMemory"


@dataclass(frozen=True)
class Shot:
    """One picture to draw.

    Attributes:
        prompt: of ``PROMPTS``.
        seed: that it is drawn with.
        learned: with the word, not the domain word.
    """

    prompt: str
    seed: int
    learned: bool


def shots(learns: bool) -> list[Shot]:
    """All of them; those of the base model alone where nothing can be learned."""
    kinds = [True, False] if learns else [False]
    return [Shot(prompt, SEED + number, kind) for kind in kinds for number, prompt in enumerate(PROMPTS)]


def filled(given: Given, usable: Usable, photo: str) -> ApiWorkflow:
    """The shipped workflow with these files in it.

    Args:
        given, usable: the files.
        photo: what the server calls the photo.
    """
    shipped = read_workflow(WORKFLOW)
    nodes = copy.deepcopy(shipped.nodes)
    side = usable.domain.image_size if usable.domain is not None else 512
    values: dict[str, dict[str, Any]] = {
        LOADS: {"ckpt_name": given.checkpoint.name},
        DOMAIN: {"domain_name": given.domain.name},
        PHOTO: {"image": photo},
        SIZE: {"width": side, "height": side},
    }
    for node in nodes.values():
        node["inputs"] |= values.get(node["class_type"], {})
    if given.clip_vision is not None and usable.domain is not None and not usable.domain.backbone.weights_inside:
        nodes["clip_vision"] = {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": given.clip_vision.name}}
        (loader,) = shipped.of_class(DOMAIN)
        nodes[loader]["inputs"]["clip_vision"] = ["clip_vision", 0]
    return ApiWorkflow(nodes, shipped.path)


def prompt_of(workflow: ApiWorkflow, shot: Shot, word: str) -> Nodes:
    """What the server gets for a picture; one of the base model alone leads past the node that learns.

    Args:
        workflow: filled.
        shot: the picture.
        word: that stands in the prompt.
    """
    nodes = copy.deepcopy(workflow.nodes)
    (learns,), (loads,), (sampler,) = (workflow.of_class(name) for name in (LEARNS, LOADS, "KSampler"))
    positive = nodes[sampler]["inputs"]["positive"][0]
    nodes[positive]["inputs"]["text"] = shot.prompt.format(word)
    nodes[sampler]["inputs"]["seed"] = shot.seed
    if not shot.learned:
        for node in nodes.values():
            for name, value in node["inputs"].items():
                if value in ([learns, 0], [learns, 1]):
                    node["inputs"][name] = [loads, value[1]]
    return nodes


def alone(installation: Installation, given: Given) -> Installation:
    """The same ComfyUI with nothing but this pack and the given files."""
    folders = {"checkpoints": given.checkpoint, "e4t_domains": given.domain, "clip_vision": given.clip_vision}
    seen = {kind: path.absolute().parent for kind, path in folders.items() if path is not None}
    return Installation(
        installation.folder,
        None,
        installation.python,
        installation.cpu,
        installation.arguments,
        installation.port,
        {**seen, "custom_nodes": ROOT.parent},
        (ROOT.name,),
    )


def draw(part: Part, installation: Installation, given: Given, usable: Usable, told: Callable[[str], None]) -> None:
    """Starts ComfyUI, learns, draws, and ends it.

    Args:
        part: gets seconds, losses, notes, pictures and faults.
        installation: what is started.
        given, usable: the files.
        told: is told how far it is.

    Raises:
        CheckError, BatchError: it does not start, or ends meanwhile.
    """
    comfyui = ComfyUI(alone(installation, given), uuid.uuid4().hex)
    workflow = filled(given, usable, "photo.png")
    started = time.monotonic()
    try:
        comfyui.start(workflow)
        part.said.append(
            f"ComfyUI {comfyui.version} answered {time.monotonic() - started:.0f} seconds after its start."
        )
        try:
            asyncio.run(_all(part, comfyui, given, usable, told))
        except Unreachable as error:
            raise CheckError(_gone(comfyui, error)) from error
    finally:
        comfyui.stop()


def _gone(comfyui: ComfyUI, error: Unreachable) -> str:
    if comfyui.alive():
        return str(error)
    return (
        f"ComfyUI ended while it worked, as it does when the system ends it for want of memory; it last said:"
        f" {comfyui.last_word()}"
    )


async def _all(part: Part, comfyui: ComfyUI, given: Given, usable: Usable, told: Callable[[str], None]) -> None:
    async with comfyui.server() as server:
        sent = await server.upload("photo.png", usable.photo) if usable.photo else "photo.png"
        workflow = filled(given, usable, sent)
        (learns,) = workflow.of_class(LEARNS)
        trigger = str(workflow.nodes[learns]["inputs"]["trigger"])
        word = usable.domain.word if usable.domain is not None else "face"
        rows = []
        todo = shots(usable.learns)
        for number, shot in enumerate(todo, 1):
            told(f"picture {number} of {len(todo)}")
            caption = shot.prompt.format(trigger if shot.learned else word)
            started = time.monotonic()
            record = await _ended(server, comfyui, prompt_of(workflow, shot, trigger if shot.learned else word))
            result = await outcome(server, record)
            rows.append((caption, shot.seed, _seconds(result, started), "drawn" if result.pictures else "failed"))
            _note(part, record, learns)
            if result.error:
                _fault(part, f"“{caption}”: {plain_failure(record, result.error)}")
            for picture in result.pictures:
                with Image.open(io.BytesIO(picture.held)) as opened:
                    part.drawn.append(Drawn(caption, shot.prompt.format(word), opened.convert("RGB"), shot.learned))
            if result.error and shot == todo[0] and shot.learned:
                # What cannot be learned once cannot be three times more.
                todo[1:4] = []
        part.table(("prompt", "seed", "seconds", ""), rows)


def _seconds(result: Outcome, started: float) -> str:
    return f"{time.monotonic() - started if result.seconds is None else result.seconds:.1f}"


def _fault(part: Part, said: str) -> None:
    if said not in part.faults:
        part.faults.append(said)


async def _ended(server: Server, comfyui: ComfyUI, nodes: Nodes) -> Json:
    """The record of a job, once it has ended.

    Raises:
        Unreachable: the server is gone.
        BatchError: it refuses the job, or lost it.
    """
    prompt_id = str(uuid.uuid4())
    await server.queue(nodes, prompt_id)
    silent = 0
    while True:
        try:
            waiting = await server.queued()
            if (record := await server.ended(prompt_id)) is not None:
                return record
            silent = 0
        except Unreachable:
            silent += 1
            # A busy one may be late.
            if silent == TRIES or not comfyui.alive():
                raise
        else:
            if prompt_id not in waiting:
                raise BatchError("ComfyUI lost the job from its queue.")
        await asyncio.sleep(LOOK_SECONDS)


def _note(part: Part, record: Json, learns: str) -> None:
    """What nodes said, once each; the losses and seconds of learning."""
    outputs = record.get("outputs") or {}
    panels = (outputs.get(learns) or {}).get(PANEL) or []
    if panels and not part.losses:
        panel = panels[0]
        part.losses = [float(loss) for loss in panel.get("losses", [])]
        part.table(
            ("learning", ""),
            [
                ("seconds", panel.get("seconds")),
                ("steps", panel.get("steps")),
                ("first and last loss", f"{part.losses[0]:.4f}, {part.losses[-1]:.4f}" if part.losses else "none"),
                ("memory", panel.get("memory") or "not said"),
            ],
        )
    lines = [line for panel in panels if panel.get("state") == "learned" for line in panel.get("lines", [])]
    extra = record.get("prompt") or []
    texts = extra[3].get(TEXTS, {}) if len(extra) > 3 and isinstance(extra[3], dict) else {}
    lines += [line for node, said in texts.items() if node != learns for line in said]
    part.said += [line for line in dict.fromkeys(lines) if line.strip() and line not in part.said]


def plain_failure(record: Json, said: str) -> str:
    """Why a job failed, in one sentence; ComfyUI's own of memory is a paragraph.

    Args:
        record: of the server's history.
        said: as ``outcome`` has it.
    """
    for kind, data in (record.get("status") or {}).get("messages", []):
        if kind == "execution_error" and OUT_OF_MEMORY in str(data.get("exception_type", "")):
            return (
                f"ComfyUI ran out of memory in the node {data.get('node_type', 'that ran')}: close other programs that use the"
                " card, or choose a smaller memory plan in E4T Settings."
            )
    return said
