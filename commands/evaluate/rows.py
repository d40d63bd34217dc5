"""One row for each picture: whose and of what prompt it is, and what every network says of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from commands.batch.prepared import Work
from e4t_core.files.file_errors import FileKind
from e4t_core.files.whole_file import replacing

from .faults import EvaluationError
from .likeness import Bounds, Score, score
from .prompt_classes import Prompt
from .seen import Look, Seen

PICTURES = "pictures"
FILE = FileKind("Scores", "check the folder", EvaluationError)
PICTURE = FileKind("Picture", "delete it, and start the command again: it is drawn again", EvaluationError)


@dataclass(frozen=True)
class Drawn:
    """One picture, or a job that failed.

    Attributes:
        person: the number.
        prompt: what it was asked for.
        file: relative to the folder of the evaluation; none where the job failed.
        error: why.
        digest: SHA-256 of the file; "" where the job failed.
    """

    person: int
    prompt: Prompt
    file: str | None
    error: str | None
    digest: str


@dataclass(frozen=True)
class Row:
    """A picture with its scores.

    Attributes:
        drawn: the picture.
        identity: by the name of each network that can judge the person.
        likeness: by CLIP; none without it.
        prompt: similarity to the prompt by CLIP.
        other_prompts: the mean to the prompts of other classes.
    """

    drawn: Drawn
    identity: Mapping[str, Score]
    likeness: Score | None = None
    prompt: float | None = None
    other_prompts: float | None = None


def drawn(work: Work, prompts: Sequence[Prompt]) -> list[Drawn]:
    """Everything that a batch drew for an evaluation, in its order.

    Raises:
        EvaluationError: a picture is not there any more.
    """
    of_row = {prompt.row: prompt for prompt in prompts}
    made = []
    for job in work.plan.jobs:
        for line in work.results.report.lines(job.key):
            file = None if line["file"] is None else f"{PICTURES}/{line['file']}"
            digest = ""
            if line["file"] is not None:
                path = work.results.folder / line["file"]
                try:
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                except OSError as error:
                    raise PICTURE.fault(
                        path, f"cannot be read ({error.strerror})", "start the command again"
                    ) from error
            made.append(Drawn(int(job.photo.concept), of_row[job.row], file, line["error"], digest))
    return made


def looks(pictures: Sequence[Drawn], folder: Path) -> list[Look]:
    """The pictures, for networks to look at."""

    def opened(path: Path) -> Image.Image:
        try:
            with Image.open(path) as picture:
                return picture.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise PICTURE.fault(path, "cannot be opened") from error

    return [
        Look(picture.digest, lambda path=folder / picture.file: opened(path))  # type: ignore[misc]
        for picture in pictures
        if picture.file is not None
    ]


def scored(
    pictures: Sequence[Drawn],
    judges: Sequence[tuple[Seen, Mapping[int, Bounds]]],
    clip: tuple[Seen, Mapping[int, Bounds]] | None = None,
    texts: Mapping[str, np.ndarray] | None = None,
) -> list[Row]:
    """A row for each picture; all have been looked at.

    Args:
        pictures: those that were drawn, and jobs that failed.
        judges: identity networks, with the bounds of the people that they can judge.
        clip: the same of CLIP.
        texts: unit vectors ``(D,)`` of what CLIP is asked, by its text.
    """
    texts = texts or {}
    others = _others(texts, pictures)
    rows = []
    for picture in pictures:
        if picture.file is None:
            rows.append(Row(picture, {}))
            continue
        identity = {
            seen.network.name: score(seen, bounds[picture.person], picture.digest)
            for seen, bounds in judges
            if picture.person in bounds
        }
        if clip is None:
            rows.append(Row(picture, identity))
            continue
        seen, of = clip
        vector = seen.vectors([picture.digest])[0]
        other = others[picture.prompt.group]
        rows.append(
            Row(
                picture,
                identity,
                score(seen, of[picture.person], picture.digest),
                float(vector @ texts[picture.prompt.plain]),
                float((other @ vector).mean()) if len(other) else None,
            )
        )
    return rows


def _others(texts: Mapping[str, np.ndarray], pictures: Sequence[Drawn]) -> dict[str, np.ndarray]:
    """For each class the texts of the other ones, each once."""
    asked = dict.fromkeys((picture.prompt.group, picture.prompt.plain) for picture in pictures)
    groups = {group for group, _ in asked}
    return {
        group: np.array([texts[text] for text in dict.fromkeys(text for other, text in asked if other != group)])
        for group in groups
        if texts
    }


def write(rows: Sequence[Row], path: Path) -> None:
    """As JSON lines.

    Raises:
        EvaluationError: it could not be written.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            for row in rows:
                file.write(f"{json.dumps(_line(row), ensure_ascii=False)}\n".encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise FILE.fault(path, f"cannot be written ({error.strerror})", "make room, or check it") from error


def _line(row: Row) -> dict[str, Any]:
    clip = None
    if row.likeness is not None:
        clip = {
            "prompt": row.prompt,
            "other_prompts": row.other_prompts,
            "picture": row.likeness.identity,
            "to_photo": row.likeness.to_photo,
        }
    return {
        "person": row.drawn.person,
        "class": row.drawn.prompt.group,
        "prompt": row.drawn.prompt.row.prompt,
        "seed": row.drawn.prompt.row.seed,
        "file": row.drawn.file,
        "error": row.drawn.error,
        "identity": {name: asdict(score) for name, score in row.identity.items()},
        "clip": clip,
    }
