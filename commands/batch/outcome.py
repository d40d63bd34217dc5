"""From what a server keeps of a job that ended to its pictures, or to one sentence about its failure."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from e4t_core.files.file_errors import shortened

from .faults import BatchError
from .jobs import Job
from .results import Outcome, Picture
from .server import Json, Server

ERROR_LIMIT = 600  # characters


async def outcome(server: Server, record: Json) -> Outcome:
    """What became of a job, its pictures fetched.

    Args:
        server: that ran it.
        record: of its history.

    Raises:
        Unreachable: the server is gone.
    """
    status = record.get("status") or {}
    messages = [(kind, data) for kind, data in status.get("messages", []) if isinstance(data, dict)]
    seconds = _seconds(messages)
    if status.get("status_str") != "success":
        return Outcome(seconds=seconds, error=_failure(messages))
    pictures = []
    for place in _files(record.get("outputs") or {}):
        held = await server.file(place)
        if held is None:
            return Outcome(seconds=seconds, error=f"The server lost the picture {place['filename']}.")
        suffix = PurePosixPath(place["filename"]).suffix
        if suffix.lower() == ".png" and not _is_whole(held):
            return Outcome(seconds=seconds, error=f"The picture {place['filename']} is broken on the server.")
        pictures.append(Picture(suffix, held))
    if not pictures:
        return Outcome(seconds=seconds, error="The workflow saved no picture: it needs a Save Image.")
    return Outcome(pictures, seconds)


async def saved(server: Server, job: Job, batch: str, count: int | None) -> Outcome | None:
    """The pictures of a job that a server had drawn and then forgot, because it was ended; none if one is missing.

    Args:
        server: that may have run it.
        job: the job.
        batch: id of the batch.
        count: of the pictures that such a job draws; none where that is not known.
    """
    pictures = []
    for number in range(1, (count or 0) + 1):
        folder, _, name = job.output(batch).rpartition("/")
        place = {"filename": f"{name}_{number:05}_.png", "subfolder": folder, "type": "output"}
        held = await server.file(place)
        if held is None or not _is_whole(held):
            return None
        pictures.append(Picture(".png", held))
    return Outcome(pictures) if pictures else None


def _is_whole(held: bytes) -> bool:
    """Whether a picture's file was written to its end."""
    try:
        with Image.open(io.BytesIO(held), formats=["PNG"]) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _files(outputs: Json) -> Iterator[dict[str, str]]:
    """The files that were saved for good, in the order of their nodes; previews are not."""
    for number in sorted(outputs, key=lambda number: (len(number), number)):
        for things in outputs[number].values():
            for thing in things if isinstance(things, list) else []:
                if isinstance(thing, dict) and thing.get("type") == "output" and "filename" in thing:
                    yield {name: str(thing.get(name, "")) for name in ("filename", "subfolder", "type")}


def _seconds(messages: list[tuple[str, Json]]) -> float | None:
    times: list[Any] = [data["timestamp"] for _, data in messages if "timestamp" in data]
    return (max(times) - min(times)) / 1000 if len(times) > 1 else None


def _failure(messages: list[tuple[str, Json]]) -> str:
    for kind, data in reversed(messages):
        if kind == "execution_error":
            said = str(data.get("exception_message", "")).strip() or str(data.get("exception_type", "an error"))
            return shortened(f"{data.get('node_type', 'A node')}: {' '.join(said.split())}", ERROR_LIMIT)
        if kind == "execution_interrupted":
            return "It was canceled on the server."
    return "It failed, and the server does not say why."


def failed(error: BatchError) -> Outcome:
    """The outcome of a job that never ran."""
    return Outcome(error=shortened(" ".join(str(error).split()), ERROR_LIMIT))
