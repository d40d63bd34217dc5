"""A workflow with a job's photo, prompt, seed and other inputs in their places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from e4t_core.files.file_errors import FileError

from .api_workflow import SAVING, ApiWorkflow, Nodes
from .faults import BatchError
from .photos import Photo
from .prompts import Row
from .slots import Slot, Slots, named, value_for

FOLDER = "e4t_batch"
"""Below a server's input and output folders."""


class Filling:
    """What is put where.

    Args:
        workflow: what is run for each job.
        slots: where photo, prompt and seed go.
        rows: the prompts, whose columns name other inputs.

    Raises:
        BatchError: a column of the table names no input, or holds what the input does not take.
    """

    def __init__(self, workflow: ApiWorkflow, slots: Slots, rows: Sequence[Row]) -> None:
        self.workflow, self._slots = workflow, slots
        self._others: dict[str, Slot] = {}
        for row in rows:
            self._check(row)
        if not slots.seed and any(row.seed is not None for row in rows):
            raise BatchError(
                f"The prompts have seeds, and {workflow.path.name} has no single node that takes one: say with --seed which"
                " input does, such as --seed KSampler.seed."
            )

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

    def seed(self, row: Row) -> int | None:
        """What a prompt is drawn with: its own seed, or else the workflow's."""
        if row.seed is not None or not self._slots.seed:
            return row.seed
        slot = self._slots.seed[0]
        value = self.workflow.nodes[slot.node]["inputs"][slot.input]
        return value if isinstance(value, int) else None

    def filled(self, photo: str, row: Row) -> Nodes:
        """The workflow, which only shares with the original what is not filled in.

        Args:
            photo: what goes where a photo is named.
            row: the prompt.
        """
        values: list[tuple[Slot, Any]] = [(slot, photo) for slot in self._slots.photo]
        values += [(slot, row.prompt) for slot in self._slots.prompt]
        if row.seed is not None:
            values += [(slot, row.seed) for slot in self._slots.seed]
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

    def prompt(self, photo: Photo, sent_as: str, row: Row, prefix: str) -> Nodes:
        """The workflow that a server gets for a job.

        Args:
            photo: the photo, after which a concept that is saved is named.
            sent_as: what the server calls it.
            row: the prompt.
            prefix: of the files that it saves.
        """
        nodes = self.filled(sent_as, row)
        for node in nodes.values():
            named_after: dict[str, Any] = {"filename_prefix": prefix} if "filename_prefix" in node["inputs"] else {}
            if node["class_type"] == SAVING and isinstance(node["inputs"].get("name"), str):
                named_after = {"name": concept_file(photo), "overwrite": True}
            node["inputs"] = {**node["inputs"], **named_after}
        return nodes

    def title(self, node: str) -> str:
        """What a node is called, for progress."""
        return self.workflow.title(node) if node in self.workflow.nodes else ""


def concept_file(photo: Photo) -> str:
    """The name that a concept is saved under: of the photo and of its content."""
    return f"{photo.concept}_{photo.digest[:8]}"
