"""How like the photo the pictures are, by networks that ``commands.evaluate`` brings; they decide nothing here."""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from .parts import Drawn, Part

NETWORKS = "commands.evaluate.networks"


def score(part: Part, identity: Sequence[str], clip: str | None, photo: bytes, drawn: Sequence[Drawn]) -> None:
    """Adds a table for each network.

    Args:
        part: that says them.
        identity: the networks, as ``python -m commands.evaluate`` takes them.
        clip: its ``ARCHITECTURE:FILE``, or none.
        photo: the photo as a PNG.
        drawn: the pictures.
    """
    if not identity and not clip:
        part.said.append("No score was asked for: name a network with --identity or --clip.")
        return
    if not _is_there():
        part.said.append("There are no scores: this version of the pack has no command that evaluates.")
        return
    if not drawn:
        part.said.append("There is no picture to be scored.")
        return
    with Image.open(io.BytesIO(photo)) as opened:
        learned = opened.convert("RGB")
    for name in identity:
        # One that is missing does not keep the others from it.
        with part.noting():
            for network in importlib.import_module(f"{NETWORKS}.choose").identity_networks([name]):
                _identity(part, network, learned, drawn)
    if clip:
        with part.noting():
            _prompts(part, importlib.import_module(f"{NETWORKS}.clip").Clip(clip), drawn)


def _is_there() -> bool:
    try:
        return importlib.util.find_spec(NETWORKS) is not None
    except ModuleNotFoundError:
        return False


def _identity(part: Part, network: Any, photo: Image.Image, drawn: Sequence[Drawn]) -> None:
    said = network.embed([photo, *(one.picture for one in drawn)])
    if not said.found[0]:
        part.said.append(f"{network.name} finds no face in the photo, so it has no scores.")
        return
    likeness = network.similarity(said.vectors[:1], said.vectors[1:])[0]
    rows = [
        (one.caption, f"{value:.3f}" if found else "no face found")
        for one, value, found in zip(drawn, likeness, said.found[1:], strict=True)
    ]
    for word, person in (("with the word", True), ("without it (what a stranger scores)", False)):
        values = [
            v for v, f, one in zip(likeness, said.found[1:], drawn, strict=True) if f and one.shows_person == person
        ]
        rows.append((f"mean {word}", f"{np.mean(values):.3f} of {len(values)}" if values else "no face found"))
    part.table((f"{network.name}: picture", "likeness to the photo"), rows)


def _prompts(part: Part, clip: Any, drawn: Sequence[Drawn]) -> None:
    pictures = clip.embed([one.picture for one in drawn]).vectors
    fits = np.diagonal(clip.similarity(pictures, clip.texts([one.meaning for one in drawn])))
    rows = [(one.caption, f"{value:.3f}") for one, value in zip(drawn, fits, strict=True)]
    part.table(
        (f"CLIP {clip.architecture}: picture", "fit to its prompt, with the domain word in the word's place"), rows
    )
