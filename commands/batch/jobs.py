"""What a batch is to draw: one job for each photo and prompt, known by its content and by nothing else.

A job's key is the SHA-256 of all that decides its picture: the workflow with the photo (by its content), prompt, seed and
other inputs in their places. The same command therefore means the same jobs, wherever it was cut off.
"""

from __future__ import annotations

import copy
import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from e4t_core.files.file_errors import FileError

from .api_workflow import SAVING, ApiWorkflow, Nodes
from .faults import BatchError
from .photos import Photo, file_name
from .prompts import Row
from .slots import Slot, Slots, named, value_for

FOLDER = "e4t_batch"
"""Below the server's input and output folders."""


@dataclass(frozen=True)
class Job:
    """One photo with one prompt.

    Attributes:
        key: 64 hexadecimal digits.
        photo: what is learned.
        row: the prompt.
        seed: what is drawn with; none where the workflow has no single seed.
    """

    key: str
    photo: Photo
    row: Row
    seed: int | None

    def file(self, number: int, suffix: str) -> str:
        """Where its picture goes, relative to the folder of results: by content, so that a job done twice is one file.

        Args:
            number: of the picture, from 1; a job may draw several.
            suffix: of the file, with its dot.
        """
        prompt = file_name(self.row.prompt.lower(), 40)
        several = f"_{number}" if number > 1 else ""
        return f"{self.photo.concept}/{prompt}_{self.key[:12]}{several}{suffix}"

    def prompt_id(self, batch: str, attempt: int) -> str:
        """The id that it has on a server: always the same in one batch, so that a server knows it again.

        Args:
            batch: id of the batch.
            attempt: counted from 1; a job that failed is another to the server when it is tried again.
        """
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{batch} {self.key} {attempt}"))


class Plan:
    """The jobs of a batch, those of one photo in a row, so that it is learned once.

    Args:
        workflow: what is run for each.
        slots: where photo, prompt and seed go.
        photos: at least one.
        rows: at least one.

    Raises:
        BatchError: a column of the table names no input, or holds what the input does not take.
    """

    def __init__(self, workflow: ApiWorkflow, slots: Slots, photos: Sequence[Photo], rows: Sequence[Row]) -> None:
        self.workflow, self.slots = workflow, slots
        self._others: dict[str, Slot] = {}
        for row in rows:
            self._check(row)
        if not slots.seed and any(row.seed is not None for row in rows):
            raise BatchError(
                f"The prompts have seeds, and {workflow.path.name} has no single node that takes one: say with --seed which"
                " input does, such as --seed KSampler.seed."
            )
        self.jobs = list(self._jobs(photos, rows))
        self.repeated = len(photos) * len(rows) - len(self.jobs)

    def _check(self, row: Row) -> None:
        for name, text in row.inputs:
            try:
                if name not in self._others:
                    self._others[name] = named(self.workflow, name)
                value_for(self.workflow, self._others[name], text)
            except FileError as error:
                raise BatchError(f"A column of the prompts cannot be used. {error}") from error
            except ValueError as error:
                raise BatchError(
                    f"The prompts' column {name} does not fit in line {row.line}: {error}. Correct it."
                ) from error

    def _jobs(self, photos: Sequence[Photo], rows: Sequence[Row]) -> Iterator[Job]:
        known = set()
        for photo in photos:
            for row in rows:
                seed = row.seed if row.seed is not None else self._own_seed()
                text = json.dumps(self._filled(photo.digest, row), sort_keys=True, ensure_ascii=False)
                key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
                if key not in known:
                    known.add(key)
                    yield Job(key, photo, row, seed)

    def _own_seed(self) -> int | None:
        if not self.slots.seed:
            return None
        slot = self.slots.seed[0]
        value = self.workflow.nodes[slot.node]["inputs"][slot.input]
        return value if isinstance(value, int) else None

    def _filled(self, photo: str, row: Row) -> Nodes:
        values: list[tuple[Slot, Any]] = [(slot, photo) for slot in self.slots.photo]
        values += [(slot, row.prompt) for slot in self.slots.prompt]
        if row.seed is not None:
            values += [(slot, row.seed) for slot in self.slots.seed]
        values += [
            (self._others[name], value_for(self.workflow, self._others[name], text)) for name, text in row.inputs
        ]
        # Only what changes is copied: a table may have ten thousand rows.
        nodes = {
            number: {k: v for k, v in node.items() if k != "_meta"} for number, node in self.workflow.nodes.items()
        }
        for slot, value in values:
            nodes[slot.node] = {**nodes[slot.node], "inputs": {**nodes[slot.node]["inputs"], slot.input: value}}
        return nodes

    def prompt(self, job: Job, photo: str, batch: str) -> Nodes:
        """The workflow that a server gets for a job; everything that it saves is named after the job.

        Args:
            job: one of these.
            photo: what the server calls its photo.
            batch: id of the batch.
        """
        nodes = copy.deepcopy(self._filled(photo, job.row))
        for node in nodes.values():
            if "filename_prefix" in node["inputs"]:
                node["inputs"]["filename_prefix"] = f"{FOLDER}/{batch}/{job.key[:16]}"
            if node["class_type"] == SAVING and isinstance(node["inputs"].get("name"), str):
                node["inputs"] |= {"name": concept_file(job.photo), "overwrite": True}
        return nodes

    def title(self, node: str) -> str:
        """What a node is called, for progress."""
        return self.workflow.title(node) if node in self.workflow.nodes else ""


def concept_file(photo: Photo) -> str:
    """The name that a concept is saved under: of the photo and of its content."""
    return f"{photo.concept}_{photo.digest[:8]}"
