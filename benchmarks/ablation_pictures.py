"""Draws the ablations' arms and keeps pictures and the lengths of their words in runs/ablations, individual by individual."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from commands.progress import Progress
from e4t_core.files.checked_file import write_tensors
from e4t_core.files.file_errors import FileKind
from miniworld.heldout import held_out

from . import host
from .ablation_arms import Ablation
from .ablation_domains import FOLDER, STEPS, Unfinished, domain_file, loaded, pretrain
from .arms import SAMPLING, WEIGHTS, Drawer, Subject, load_subjects
from .noted_words import noted_words
from .picture_cache import that_count

DOMAIN = "face"
KIND = FileKind("Pictures")
STRANGERS = 8


@dataclass(frozen=True, eq=False)
class Drawn:
    """One individual in one arm.

    Attributes:
        pictures: ``(prompts, 3, 128, 128)`` in [0, 1].
        words: ``(prompts, evaluations, 2)``, timestep and length of the word by evaluation, see ``noted_words``; without rows
            where the word stays.
    """

    pictures: Tensor
    words: Tensor


class _OwnDomain(Drawer):
    """A drawer whose domain is a file of its own."""

    def __init__(self, changes: dict[str, Any], base: host.Base, file: Path) -> None:
        super().__init__(1, changes, DOMAIN, base)
        self._domains[DOMAIN] = loaded(file)


class Painter:
    """Draws arms of the first individuals of a split.

    Args:
        split: "validation" or "held-out".
        count: of individuals.
        steps: of a shortened pre-training.
        until: by ``time.monotonic()``; after it no further picture or pre-training is begun.
    """

    def __init__(self, split: str, count: int, steps: int = STEPS, until: float = float("inf")) -> None:
        self.split, self.steps, self.until = split, steps, until
        self.people = load_subjects(split, count, DOMAIN)
        # As many whatever the count, so that UNNAMED of a few individuals can be compared with that of more.
        self.strangers = held_out(DOMAIN, split, max(STRANGERS, count))
        self._base: host.Base | None = None
        self._drawers: dict[str, Drawer] = {}

    @property
    def base(self) -> host.Base:
        """Shared by all arms."""
        if self._base is None:
            self._base = host.load_base(host.mini_checkpoint())
        return self._base

    def drawer(self, arm: Ablation) -> Drawer:
        """What draws an arm; its domain is pre-trained now if need be.

        Raises:
            Unfinished: that takes longer than there is time.
        """
        if arm.name not in self._drawers:
            changes = dict(arm.changes)
            if arm.pretraining is None:
                made = Drawer(1, changes, DOMAIN, self.base)
            else:
                made = _OwnDomain(changes, self.base, pretrain(arm, self.until, self.steps))
            self._drawers[arm.name] = made
        return self._drawers[arm.name]

    def file(self, arm: Ablation, person: Subject) -> Path:
        """Where an individual's pictures of an arm lie, named by all that decides them but the code."""
        drawer = self.drawer(arm)
        decides = [
            host.weights_fingerprint("base", "text", "vae", "backbone", WEIGHTS[DOMAIN]),
            drawer.domain(DOMAIN).domain.fingerprint,
            that_count(drawer.settings()) | drawer.drawn,
            asdict(SAMPLING),
        ]
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
        who = hashlib.sha256(person.identity.order()).hexdigest()[:16]
        return FOLDER / self.split / key / f"{person.number:02d}-{who}.safetensors"

    def drawn(self, arm: Ablation, person: Subject) -> Drawn:
        """From its file, or drawn now and kept there.

        Raises:
            Unfinished: there is no time left.
        """
        path = self.file(arm, person)
        if not path.exists():
            if time.monotonic() > self.until:
                raise Unfinished(f"{arm.name!r} of individual {person.number} is not drawn: the same command goes on.")
            path.parent.mkdir(parents=True, exist_ok=True)
            with noted_words() as words:
                pictures = self.drawer(arm).draw("e4t", person)
            points = torch.tensor(words) if words else torch.zeros(0, 0, 2)
            write_tensors(path, {"pictures": (pictures * 255).round().to(torch.uint8), "words": points}, {}, KIND)
        kept = load_file(path)
        return Drawn(kept["pictures"].float() / 255, kept["words"])

    def is_drawn(self, arm: Ablation) -> bool:
        """Whether all individuals of an arm are kept; nothing is drawn or pre-trained."""
        if arm.pretraining is not None and not domain_file(arm, self.steps).exists():
            return False
        return all(self.file(arm, person).exists() for person in self.people)

    def draw(self, arms: Sequence[Ablation]) -> None:
        """Draws what is missing: arms on the shipped domain first, the others when those are complete.

        Arms of one concept are drawn one after the other for each individual, so that they find it in the result store.

        Raises:
            Unfinished: there is no time left; what was drawn is kept.
        """
        for group in ([a for a in arms if a.pretraining is None], [a for a in arms if a.pretraining is not None]):
            for person in Progress(self.people, desc=self.split):
                for arm in group:
                    self.drawn(arm, person)

    def all(self, arms: Sequence[Ablation]) -> dict[str, list[Drawn]]:
        """Name of each arm -> every individual.

        Raises:
            Unfinished: there is no time left; what was drawn is kept.
        """
        self.draw(arms)
        return {arm.name: [self.drawn(arm, person) for person in self.people] for arm in arms}
