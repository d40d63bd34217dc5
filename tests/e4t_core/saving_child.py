"""A program that saves concepts over and over, for tests of several at once, or of one that is killed."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path

import torch

for place in (Path(__file__).parents[2], Path(__file__).parent):
    if str(place) not in sys.path:
        sys.path.append(str(place))

from kept import places, word_only

from e4t_core.concept import Concept
from e4t_core.files.concept_saving import save_concept
from e4t_core.weight_changes import Full


def numbered(number: int, size: int = 64) -> Concept:
    """A concept whose every number is its own: what is read of two of them does not fit together."""
    return dataclasses.replace(
        word_only(float(number), f"f{number}"),
        weights=tuple(Full.of(f"w{part}", torch.full((size, size), float(number))) for part in range(4)),
        notes=(str(number),),
    )


def number_of(concept: Concept) -> int:
    """Which of them a concept is; all of its parts must say the same."""
    said = {int(concept.notes[0]), int(concept.fingerprint[1:]), *concept.embedding.unique().int().tolist()}
    for change in concept.weights:
        assert isinstance(change, Full)
        said |= set(change.difference().unique().int().tolist())
    assert len(said) == 1 and len(concept.weights) == 4, said
    return said.pop()


def save(folder: str, name: str, numbers: range, overwrite: bool, size: int) -> None:
    for number in numbers:
        save_concept(places(Path(folder)), name, numbered(number, size), "exact", overwrite=overwrite)


def die_at(event: int) -> None:
    """Kill this process at so many file events (openings, renamings, removals) from now on, however fast the machine is."""
    left = event

    def watch(what: str, _: object) -> None:
        nonlocal left
        if what == "open" or what.startswith("os."):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def main(folder: str, name: str, overwrite: str, size: str) -> None:
    """Do what the lines say that come in, three numbers each.

    "save 3 5 0" saves numbers 3 and 4, then says "saved". "fork 3 5 0" does so in a process of its own, says which, and
    "ended" when that has ended, whatever ended it: torch takes seconds to import, so one program starts all that are killed.
    With another last number the process kills itself, see :func:`die_at`.
    """
    print("ready", flush=True)
    for line in sys.stdin:
        what, first, last, event = line.split()
        given = folder, name, range(int(first), int(last)), overwrite == "overwrite", int(size)
        if what == "save":
            save(*given)
            print("saved", flush=True)
            continue
        process = os.fork()
        if process == 0:
            if event != "0":
                die_at(int(event))
            save(*given)
            os._exit(0)
        print(process, flush=True)
        os.waitpid(process, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
