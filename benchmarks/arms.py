"""The quality benchmark's arms: what is put in the word's place, and how a picture comes about.

Every arm draws the same prompts from the same starting noise. E4T goes through this pack's own node code, in process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from e4t_core.files.domain_file import load_domain
from miniworld.attributes import DOMAINS, Identity, Scene
from miniworld.captions import subject_phrases
from miniworld.concept_photos import CHUNK, CONCEPTS, subject_masks, training_identities
from miniworld.heldout import concept_photo, held_out
from miniworld.judge_pairs import reconstruct
from miniworld.models import load_vae
from miniworld.renderer import render

from . import host
from .prompts import Prompt, prompts, seed_of

WORD = "S*"
SAMPLING = host.SECOND_ORDER
STORE_BYTES = 500_000_000
RENDERED = ("other", "nearest", "render", "vae")
PROMPTED = ("coarse", "oracle")
LEARNED = ("encoder", "static", "e4t", "e4t mask", "crossed")
UNMASKED = ("static", "e4t")  # tuned, and no mask is given
DRAWN = ("refine", "end_percent", "refine_every")  # settings of how the word is drawn that may be changed
AS_A_CARD = "bfloat16"  # a change that is no setting: learn in the number type that graphics cards learn in
WEIGHTS = {"face": "faces", "cat": "cats"}
ARMS = {
    "other": "a rendering of another identity",
    "coarse": "the domain word",
    "nearest": "a rendering of the nearest training identity",
    "oracle": "all named attributes in words",
    "encoder": "E4T's encoder without tuning",
    "static": "E4T's static word on the untouched base",
    "e4t": "E4T with the photo alone: it finds the subject by itself",
    "e4t mask": "E4T with an exact mask of the subject, without background and accessory",
    "crossed": "E4T with the other domain's file, and with a mask",
    "vae": "ceiling: the VAE's reconstruction of the real rendering",
    "render": "ceiling: the real rendering",
}


@dataclass(frozen=True)
class Subject:
    """One individual of the benchmark.

    Attributes:
        number: place in the order by hash.
        photo: ``(3, 128, 128)``, shown in ``scene``.
        other: another individual of the benchmark.
    """

    number: int
    identity: Identity
    scene: Scene
    photo: Tensor
    other: Identity
    prompts: tuple[Prompt, ...]


@cache
def _training_identities(domain: str) -> tuple[Identity, ...]:
    """The individuals that the domain was pre-trained with."""
    return tuple(i for chunk in range(CONCEPTS // CHUNK) for i in training_identities(domain, chunk))


def distance(first: Identity, second: Identity) -> float:
    """0 for equal, about 1 for strangers, half by named attributes and a quarter each by geometry and marks."""
    named = np.mean([a != b for a, b in zip(first.named, second.named, strict=True)])
    marks = np.mean([a != b for a, b in zip(first.marks, second.marks, strict=True)])
    geometry = np.mean(np.abs(np.subtract(first.geometry, second.geometry))) * 3
    return float(0.5 * named + 0.25 * marks + 0.25 * geometry)


def nearest_training_identity(identity: Identity) -> Identity:
    return min(_training_identities(identity.domain), key=lambda known: distance(identity, known))


class Drawer:
    """Draws any arm of any subject.

    Args:
        changes: settings that differ from the domain's preset, those in ``DRAWN``, and ``bfloat16``.
        draws: pictures for each prompt.
        subject_domain: what the subjects are, "face" or "cat".
        base: another drawer's, so that it is not loaded twice.
    """

    def __init__(
        self, draws: int, changes: dict[str, Any], subject_domain: str = "face", base: host.Base | None = None
    ) -> None:
        self.draws, self.subject_domain = draws, subject_domain
        self.changes = {name: value for name, value in changes.items() if name not in (*DRAWN, AS_A_CARD)}
        if changes.get(AS_A_CARD):
            host.import_comfyui()
            host.learn_as_a_card_does()
        self.drawn = {name: value for name, value in changes.items() if name in DRAWN}
        self._base = base
        self._domains: dict[str, Any] = {}
        self._vae: Any = None

    @property
    def base(self) -> host.Base:
        if self._base is None:
            self._base = host.load_base(host.mini_checkpoint())
        return self._base

    def settings(self, **more: Any) -> Any:
        """The domain's preset with this run's changes, as the nodes use it."""
        return replace(self.domain(self.subject_domain).domain.info.preset, **(self.changes | more))

    def domain(self, of: str) -> Any:
        """The domain of faces or of cats, as its node loads it."""
        if of not in self._domains:
            loaded = load_domain(host.mini_domain(WEIGHTS[of]))
            self._domains[of] = host.pack("nodes.host.learning.request").LoadedDomain(loaded)
        return self._domains[of]

    def draw(self, arm: str, subject: Subject) -> Tensor:
        """Pictures ``(prompts * draws, 3, 128, 128)``, prompt by prompt."""
        if arm in RENDERED:
            return self._rendered(arm, subject)
        if arm in PROMPTED:
            return self._prompted(arm, subject)
        return self._learned(arm, subject)

    def _rendered(self, arm: str, subject: Subject) -> Tensor:
        who = {"other": subject.other, "nearest": None}.get(arm, subject.identity)
        who = who or nearest_training_identity(subject.identity)
        pictures = render([who] * len(subject.prompts), [p.scene for p in subject.prompts])
        if arm == "vae":
            self._vae = self._vae or load_vae()
            pictures = reconstruct(self._vae, pictures)
        return pictures.repeat_interleave(self.draws, dim=0)

    def seeds(self, subject: Subject, prompt: int) -> list[int]:
        """Of the starting noise of each picture of a prompt."""
        return [seed_of(subject.number, prompt, draw) for draw in range(self.draws)]

    def _prompted(self, arm: str, subject: Subject) -> Tensor:
        coarse = DOMAINS[self.subject_domain].word
        word = coarse if arm == "coarse" else ", ".join([coarse, *subject_phrases(subject.identity)])
        return self._draw_at_once(self.base, word, subject)

    def _draw_at_once(self, base: host.Base, word: str, subject: Subject) -> Tensor:
        """All pictures of a subject in one batch, where nothing refines the word."""
        texts = [p.text.format(word) for p in subject.prompts for _ in range(self.draws)]
        seeds = [seed for number in range(len(subject.prompts)) for seed in self.seeds(subject, number)]
        return host.draw(base, texts, seeds, SAMPLING)

    def _learned(self, arm: str, subject: Subject) -> Tensor:
        changes: dict[str, Any] = {"steps": 0} if arm == "encoder" else {}
        mask = None
        if arm in ("e4t mask", "crossed"):
            mask = subject_masks([subject.identity], [subject.scene], subject.photo[None])[0]
        domain = self.subject_domain
        if arm == "crossed":
            domain = next(other for other in WEIGHTS if other != domain)
        tuned = personalize(self.base, self.domain(domain), subject.photo, mask, self.settings(**changes), **self.drawn)
        if arm == "static":  # the word alone, on a MODEL that holds no concept: what a stock embedding file gives
            return self._draw_at_once(replace(tuned, model=self.base.model), WORD, subject)
        parts = []
        for number, prompt in enumerate(subject.prompts):
            parts.append(host.draw(tuned, [prompt.text.format(WORD)], self.seeds(subject, number), SAMPLING))
        return torch.cat(parts)


def personalize(
    base: host.Base,
    domain: Any,
    photo: Tensor,
    mask: Tensor | None,
    settings: Any,
    crop: str = "middle",
    boxes: Any = None,
    **sampling: Any,
) -> host.Base:
    """The node "E4T Personalize" on a photo ``(3, H, W)``: the base with the concept in MODEL and CLIP, drawn as ``sampling`` says.

    Portraits need no search, so that ``crop`` is the middle unless another one is asked for.
    """
    node = host.pack("nodes.personalize").Personalize
    # Two concepts: arms of one subject share them, and 64 subjects do not fill the memory.
    host.pack("nodes.host.learning.result_store").STORE.limit = STORE_BYTES
    with torch.inference_mode():
        output = node.execute(
            model=base.model, clip=base.clip, vae=base.vae, domain=domain, image=photo.movedim(0, -1)[None], trigger=WORD,
            seed=0, mask=mask, settings=host.chosen(settings, **sampling), crop=crop, boxes=boxes,
        )  # fmt: skip
    model, clip = output.args[:2]
    return host.Base(model, clip, base.vae)


def subjects(people: Sequence[tuple[Identity, Scene, Tensor, tuple[Prompt, ...]]]) -> list[Subject]:
    """Numbers them and pairs each with another one, a third of the way round."""
    count = len(people)
    step = max(1, count // 3)
    return [
        Subject(number, identity, scene, photo, people[(number + step) % count][0], asked)
        for number, (identity, scene, photo, asked) in enumerate(people)
    ]


def load_subjects(split: str, count: int, domain: str = "face") -> list[Subject]:
    """The first individuals of a split ("held-out" or "validation"), their concept photos and prompts."""
    people = []
    for number, identity in enumerate(held_out(domain, split, count)):
        scene, photo = concept_photo(identity)
        people.append((identity, scene, photo, prompts(scene, number)))
    return subjects(people)
