"""A workflow in ComfyUI's API format, read from a file: ``{node id: {"class_type": ..., "inputs": {...}}}``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e4t_core.files.file_errors import FileError, FileKind, shown
from e4t_core.files.whole_file import check_is_file
from e4t_core.methods.registered import SIBLINGS, node_id

from .faults import BatchError

Nodes = dict[str, dict[str, Any]]

LEARNING = ("E4TPersonalize", "E4THyperNetwork", *(node_id(kind) for kind in SIBLINGS))
"""Classes of the nodes that learn a photo."""
SAVING = "E4TSaveConcept"
EXPORT = "open it in ComfyUI, choose File, Export (API), and name the file that this writes"


class WorkflowError(BatchError, FileError):
    """A workflow that no batch can be made of."""


FILE = FileKind("Workflow", EXPORT, WorkflowError)


@dataclass(frozen=True)
class ApiWorkflow:
    """The nodes of a workflow that learns.

    Attributes:
        nodes: by id, each with ``class_type`` and ``inputs``; an input is a value, or a link ``[node id, output]``.
        path: the file, for messages.
    """

    nodes: Nodes
    path: Path

    def learning(self) -> list[str]:
        """Ids of the nodes of this pack that learn."""
        return self.of_class(*LEARNING)

    def of_class(self, *names: str) -> list[str]:
        """Ids of the nodes of these classes."""
        return [number for number, node in self.nodes.items() if node["class_type"] in names]

    def classes(self) -> list[str]:
        """The classes of its nodes, each once."""
        return sorted({node["class_type"] for node in self.nodes.values()})

    def title(self, number: str) -> str:
        """What people call a node: its title, else its class."""
        node = self.nodes[number]
        meta = node.get("_meta")
        title = meta.get("title") if isinstance(meta, dict) else None
        return title if isinstance(title, str) and title else str(node["class_type"])

    def shown(self, number: str) -> str:
        """A node for messages."""
        return f"{number} ({self.title(number)})"

    def upstream(self, number: str, name: str) -> Iterator[str]:
        """Ids of the nodes that lead to an input, near ones first, each once."""
        found: list[str] = []
        links = [self.nodes[number]["inputs"].get(name)]
        while links:
            link = links.pop(0)
            if is_link(link) and link[0] in self.nodes and link[0] not in found:
                found.append(link[0])
                yield link[0]
                links += self.nodes[link[0]]["inputs"].values()


def is_link(value: object) -> bool:
    """Whether an input comes from another node."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def read_workflow(path: Path, learns: bool = True) -> ApiWorkflow:
    """The workflow in a file.

    Args:
        path: the file.
        learns: whether it must have a node of this pack that learns; without one, its inputs have to be named.

    Raises:
        WorkflowError: it is not there, has another format, or learns nothing.
    """
    check_is_file(path, FILE)
    try:
        nodes = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FILE.fault(path, f"cannot be read ({error.strerror})", "check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise FILE.fault(path, "is no JSON") from error
    if isinstance(nodes, dict) and isinstance(nodes.get("nodes"), list):
        raise FILE.fault(path, "is in the editor's format, and servers take the API format only")
    if not isinstance(nodes, dict) or not nodes:
        raise FILE.fault(path, "holds no workflow in API format")
    for number, node in nodes.items():
        if not (
            isinstance(node, dict)
            and isinstance(node.get("class_type"), str)
            and isinstance(inputs := node.get("inputs"), dict)
            and not any(is_link(link) and link[0] not in nodes for link in inputs.values())
        ):
            raise FILE.fault(path, f"holds no workflow in API format: its node {shown(number)} is none")
    workflow = ApiWorkflow(nodes, path)
    if learns and not workflow.learning():
        raise FILE.fault(
            path,
            "has no node that learns a photo",
            "add E4T Personalize or one of the nodes Learn Photo and export it again, or name another pack's inputs with --photo"
            " and --prompt",
        )
    return workflow
