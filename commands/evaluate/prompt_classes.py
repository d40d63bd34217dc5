"""The prompts of an evaluation, each of a class: shipped ones after the paper's four kinds of change, or a table of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from commands.batch.prompts import FILE, Row, read_prompts

SHIPPED = Path(__file__).with_name("prompts.csv")
PLACE = "{}"
"""Where the trigger stands in shipped prompts, and may stand in others."""
CLASS, OTHERS = "class", "all"


@dataclass(frozen=True)
class Prompt:
    """One prompt with one seed.

    Attributes:
        row: as a batch takes it.
        group: the class that it is counted in.
        plain: what a picture of it shows, without the trigger: what CLIP compares with.
    """

    row: Row
    group: str
    plain: str


def read_classes(path: Path, trigger: str, word: str, draws: int | None) -> list[Prompt]:
    """The prompts of a file, in its order.

    Args:
        path: a table with the columns ``prompt`` and perhaps ``class``, and what a batch's table has; or one prompt a line.
        trigger: what the workflow calls the person.
        word: stands for the trigger in what CLIP is asked; "" leaves it out, as Textual Inversion's paper does.
        draws: pictures of each prompt, with the seeds 1, 2, ...; none where the workflow takes no seed. Prompts that say
            their seed keep it.

    Raises:
        PromptsError: it cannot be used.
    """
    prompts = []
    for row in read_prompts(path):
        text = row.prompt.replace(PLACE, trigger)
        if trigger not in text:
            raise FILE.fault(
                path,
                f"has a prompt without the trigger {trigger} in line {row.line}",
                f"write {trigger} or {PLACE} where the person stands",
            )
        group = dict(row.inputs).get(CLASS, OTHERS)
        others = tuple(pair for pair in row.inputs if pair[0] != CLASS)
        plain = " ".join(text.replace(trigger, word).split())
        for seed in _seeds(row, draws):
            prompts.append(Prompt(replace(row, prompt=text, inputs=others, seed=seed), group, plain))
    return prompts


def _seeds(row: Row, draws: int | None) -> Sequence[int | None]:
    if row.seed is not None or draws is None:
        return (row.seed,)
    return range(1, draws + 1)


def groups(prompts: Sequence[Prompt]) -> list[str]:
    """The classes, each once, in the order of the prompts."""
    return list(dict.fromkeys(prompt.group for prompt in prompts))
