"""Draws the pictures of the quality benchmark and keeps them in runs/quality, several individuals at a time."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from commands.progress import Progress
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.settings import settings_of
from miniworld.presets import PRESETS

from . import host
from .arms import LEARNED, SAMPLING, UNMASKED, WEIGHTS, Drawer, Subject, load_subjects
from .picture_cache import cached, that_count


def picture_folder(split: str, arm: str, changes: dict[str, Any], domain: str = "face") -> Path:
    """Where an arm's pictures lie: named by all that decides them but the code and the domain's config."""
    weights = [] if arm in ("other", "render", "nearest") else ["base", "text", "vae"] if arm != "vae" else ["vae"]
    if arm in LEARNED:
        crossed = arm == "crossed"
        weights += [w for of, w in WEIGHTS.items() if (of == domain) != crossed] + ["backbone"]
    settings: dict[str, Any] = {}
    if arm in LEARNED:
        # What is changed of drawing is no setting of tuning.
        tuned = {name: value for name, value in changes.items() if name in settings_of(TuningSettings)}
        settings = that_count(replace(PRESETS[WEIGHTS[domain]], **tuned)) | changes
    # Only read where no mask is given; switched off, all is as it was before there was this setting.
    if arm not in UNMASKED or not settings["find_subject"]:
        settings.pop("find_subject", None)
    decides = json.dumps([weights and host.weights_fingerprint(*weights), settings, asdict(SAMPLING)])
    key = hashlib.sha256(decides.encode()).hexdigest()[:12]
    place = split if domain == "face" else f"{split}-{domain}"
    return host.ROOT / "runs" / "quality" / place / f"{arm.replace(' ', '_')}-{key}"


def picture_file(split: str, arm: str, changes: dict[str, Any], person: Subject, draws: int) -> Path:
    """Where one individual's pictures of an arm lie; the noise depends on its number, "other" on who stands in."""
    who = hashlib.sha256(person.identity.order() + person.other.order() * (arm == "other")).hexdigest()[:16]
    return (
        picture_folder(split, arm, changes, person.identity.domain) / f"{person.number:02d}-{who}-{draws}.safetensors"
    )


@dataclass(frozen=True)
class Drawing:
    """What is drawn.

    Attributes:
        split: "held-out" or "validation".
        domain: of the individuals.
        identities: how many of them.
        arms: what stands in the word's place.
        draws: pictures for each prompt.
        changes: tuning settings that differ from the domain's preset.
    """

    split: str
    domain: str
    identities: int
    arms: tuple[str, ...]
    draws: int
    changes: dict[str, Any]


class Painter:
    """Draws individuals of a ``Drawing`` one by one, and remembers the base and the domains meanwhile."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing
        self.drawer = Drawer(drawing.draws, drawing.changes, drawing.domain)
        self.people = load_subjects(drawing.split, drawing.identities, drawing.domain)

    def pictures(self, number: int) -> dict[str, Tensor]:
        """arm -> pictures ``(prompts * draws, 3, 128, 128)`` of one individual, drawn now where they are not kept."""
        d, person = self.drawing, self.people[number]
        found = {}
        for arm in d.arms:  # one after the other, so that arms that share a tuned concept find it in the result store
            path = picture_file(d.split, arm, d.changes, person, d.draws)
            found[arm] = cached(path, lambda arm=arm: self.drawer.draw(arm, person))  # type: ignore[misc]
        return found

    def missing(self) -> list[int]:
        """The numbers of those of whom a picture is not kept."""
        d = self.drawing
        return [
            person.number
            for person in self.people
            if not all(picture_file(d.split, arm, d.changes, person, d.draws).exists() for arm in d.arms)
        ]


_painter: Painter | None = None  # of a process of ``draw_missing``


def _begin(drawing: Drawing, threads: int) -> None:
    global _painter
    torch.set_num_threads(threads)
    _painter = Painter(drawing)


def _draw(number: int) -> None:
    assert _painter is not None
    _painter.pictures(number)


def draw_missing(drawing: Drawing, processes: int, threads: int) -> None:
    """Draws what is not kept yet, in ``processes`` processes of ``threads`` threads each.

    A model this small does not keep two cores busy together; two of it do.
    """
    missing = Painter(drawing).missing()
    processes = min(processes, len(missing))
    if processes < 2:
        return
    host.mini_checkpoint()
    for weights in WEIGHTS.values():
        host.mini_domain(weights)  # made once, not by every process
    with multiprocessing.get_context("spawn").Pool(processes, _begin, (drawing, threads)) as pool:
        for _ in Progress(pool.imap_unordered(_draw, missing), total=len(missing), desc="drawing"):
            pass
