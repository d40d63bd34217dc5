"""Where photo, prompt and seed go in a workflow: found by itself where there is one way, else named by the user.

An input is named ``title.input`` or ``id.input``: ``Prompt.text``, ``KSampler.seed``, ``5.text``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from e4t_core.files.file_errors import shown

from .api_workflow import LEARNING, ApiWorkflow, WorkflowError, is_link

SEEDS = ("seed", "noise_seed")
MOST_SEED = 2**64 - 1


@dataclass(frozen=True)
class Slot:
    """One input of one node."""

    node: str
    input: str


@dataclass(frozen=True)
class Slots:
    """The inputs that differ from job to job; each value goes into all inputs of its kind.

    Attributes:
        photo: take the name of an uploaded photo.
        prompt: take the prompt.
        seed: take the seed; none where the workflow has nothing that draws at random, or several things.
    """

    photo: tuple[Slot, ...]
    prompt: tuple[Slot, ...]
    seed: tuple[Slot, ...]


def find_slots(
    workflow: ApiWorkflow, photo: Sequence[str] = (), prompt: Sequence[str] = (), seed: Sequence[str] = ()
) -> Slots:
    """The inputs as named, and those that were not named as the workflow shows them.

    Raises:
        WorkflowError: a name fits none or several, or there is no one input to be found.
    """
    return Slots(
        tuple(named(workflow, name) for name in photo) or _photo(workflow),
        tuple(named(workflow, name) for name in prompt) or _prompt(workflow),
        tuple(named(workflow, name) for name in seed) or _seed(workflow),
    )


def named(workflow: ApiWorkflow, name: str) -> Slot:
    """The input that a name names, an id before a title.

    Raises:
        WorkflowError: it names none, several, or one that is wired.
    """
    # Titles and the names of inputs may both hold dots.
    parts = [(name[:at].strip(), name[at + 1 :].strip()) for at, letter in enumerate(name) if letter == "."]
    if not parts:
        raise WorkflowError(f"{shown(name)} names no input: write the node's title or id, a dot, and the input.")
    nodes: set[str] = set()
    found: set[Slot] = set()
    for left, right in parts:
        called = [left] if left in workflow.nodes else [n for n in workflow.nodes if workflow.title(n) == left]
        nodes.update(called)
        found.update(Slot(number, right) for number in called if right in workflow.nodes[number]["inputs"])
    if not nodes:
        titles = ", ".join(sorted({workflow.title(number) for number in workflow.nodes}))
        raise WorkflowError(f"{shown(name)} names no node of {workflow.path.name}: it has {titles}.")
    if not found:
        inputs = sorted({name for number in nodes for name in workflow.nodes[number]["inputs"]})
        raise WorkflowError(f"{shown(name)} names no input: the node has {', '.join(inputs) or 'none'}.")
    if len(found) > 1:
        ids = ", ".join(sorted(f"{slot.node}.{slot.input}" for slot in found))
        raise WorkflowError(f"{shown(name)} names several inputs: write one of {ids}.")
    slot = found.pop()
    if is_link(workflow.nodes[slot.node]["inputs"][slot.input]):
        raise WorkflowError(f"{shown(name)} is wired: name an input of the node that it comes from.")
    return slot


def value_for(workflow: ApiWorkflow, slot: Slot, text: str) -> Any:
    """A text from a table as the kind of value that the workflow has there.

    Raises:
        ValueError: it is of another kind.
    """
    present = workflow.nodes[slot.node]["inputs"][slot.input]
    if isinstance(present, bool):
        values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.strip().lower() not in values:
            raise ValueError(f"{shown(text)} is neither true nor false")
        return values[text.strip().lower()]
    kind = type(present)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            whole = "whole " if kind is int else ""
            raise ValueError(f"{shown(text)} is no {whole}number") from None
    return text


def trigger(workflow: ApiWorkflow) -> str | None:
    """What the workflow's first learning node calls what it learns; none where no node says it, or another one."""
    value = next((workflow.nodes[number]["inputs"].get("trigger") for number in workflow.learning()), None)
    return value if isinstance(value, str) and value else None


def _photo(workflow: ApiWorkflow) -> tuple[Slot, ...]:
    found = {
        number
        for learning in workflow.learning()
        for number in workflow.upstream(learning, "image")
        if workflow.nodes[number]["class_type"].startswith("LoadImage")
        and isinstance(workflow.nodes[number]["inputs"].get("image"), str)
    }
    if len(found) == 1:
        return (Slot(found.pop(), "image"),)
    if len(workflow.learning()) > 1:
        nodes = " and ".join(workflow.shown(number) for number in workflow.learning())
        raise WorkflowError(
            f"{workflow.path.name} has several nodes that learn, {nodes}: say with --photo which input takes the photos, such"
            f" as --photo {_example(found, 'image')}. The others keep what they have."
        )
    many = f"{len(found)} nodes load" if found else "no Load Image loads"
    raise WorkflowError(
        f"In {workflow.path.name} {many} what is learned: say with --photo which input takes the photos, such as --photo"
        f" {_example(found, 'image')}."
    )


def _prompt(workflow: ApiWorkflow) -> tuple[Slot, ...]:
    word = trigger(workflow)
    found = [
        Slot(number, name)
        for number, node in workflow.nodes.items()
        if node["class_type"] not in LEARNING and word is not None
        for name, value in node["inputs"].items()
        if isinstance(value, str) and word in value
    ]
    if len(found) == 1:
        return tuple(found)
    many = "no text holds" if not found else f"{len(found)} texts hold"
    example = _example([slot.node for slot in found], found[0].input if found else "text")
    raise WorkflowError(
        f"In {workflow.path.name} {many} the trigger {word or ''}: say with --prompt which input takes the prompts, such as"
        f" --prompt {example}."
    )


def _seed(workflow: ApiWorkflow) -> tuple[Slot, ...]:
    found = [
        Slot(number, name)
        for number, node in workflow.nodes.items()
        if node["class_type"] not in LEARNING
        for name, value in node["inputs"].items()
        if name in SEEDS and isinstance(value, int)
    ]
    return tuple(found) if len(found) == 1 else ()


def _example(nodes: Any, name: str) -> str:
    return f"{min(nodes, default='5')}.{name}"
