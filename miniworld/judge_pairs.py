"""Twins for the judges' identity nets: two people who differ in one thing, each drawn in the same two scenes.

One group is four pictures: A and B in a first scene, A and B in a second one. B differs from A in one named attribute
only, or in all of the geometry only, or in the marks only. Whether the difference can be seen in a scene is known at once,
because both were drawn in it. Every picture is kept as drawn and as the autoencoder gives it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from commands.progress import Progress

from .attributes import DOMAINS, Identity, Scene, random_identity, random_scene
from .autoencoder import Autoencoder
from .renderer import SIZE, render
from .visibility import differs

CHUNK = 8  # groups drawn at once
PICTURES_EACH = 4  # A and B in one scene, A and B in another


def kinds(domain: str) -> int:
    """How many things twins can differ in: each named attribute, the geometry, the marks."""
    return len(DOMAINS[domain].named) + 2


def _changed(identity: Identity, stranger: Identity, kind: int) -> Identity | None:
    """``identity`` with one thing of ``stranger``; None if that cannot be seen or belongs to another split."""
    named = len(identity.spec.named)
    if kind < named:
        other = replace(identity, named=(*identity.named[:kind], stranger.named[kind], *identity.named[kind + 1 :]))
    elif kind == named:
        other = replace(identity, geometry=stranger.geometry)
    else:
        other = replace(identity, marks=stranger.marks)
    # A bald head's hair color is no difference; of one split with its twin, or the splits would mix.
    differs_visibly = other.canonical() != identity.canonical() or other.geometry != identity.geometry
    return other if differs_visibly and other.split() == identity.split() else None


def twin(rng: np.random.Generator, identity: Identity) -> Identity:
    """Another identity of the same split that differs in one named attribute, or in geometry, or in marks."""
    while True:
        stranger = random_identity(rng, identity.domain)
        other = _changed(identity, stranger, int(rng.integers(kinds(identity.domain))))
        if other is not None:
            return other


def twins_of_kind(rng: np.random.Generator, domain: str, split: str, kind: int) -> tuple[Identity, Identity]:
    """Two identities that differ in thing ``kind`` only.

    In a small split nearly every change of a named attribute leaves the split; whoever draws the kind first, as here,
    still gets all kinds alike.
    """
    while True:
        identity = random_identity(rng, domain, split)
        other = _changed(identity, random_identity(rng, domain), kind)
        if other is not None:
            return identity, other


def in_two_scenes(rng: np.random.Generator, a: Identity, b: Identity) -> tuple[list[Identity], list[Scene]]:
    """The four contents of a group: A1, B1, A2, B2."""
    first, second = random_scene(rng), random_scene(rng)
    return [a, b, a, b], [first, first, second, second]


def draw_group(rng: np.random.Generator, domain: str, split: str) -> tuple[list[Identity], list[Scene]]:
    """A group of someone at random and a twin."""
    a = random_identity(rng, domain, split)
    return in_two_scenes(rng, a, twin(rng, a))


@dataclass(frozen=True)
class Batch:
    """Attributes:
    pictures: ``(4 G, 3, 128, 128)`` in [0, 1], group by group: A1, B1, A2, B2.
    contents: who is in each, and in what scene.
    told_apart: ``(G,)``, whether A and B can be told apart in both scenes.
    """

    pictures: Tensor
    contents: list[tuple[Identity, Scene]]
    told_apart: Tensor


class Twins:
    """``groups`` groups of the training split in ``folder``, drawn on first use; drawing resumes where it ended."""

    def __init__(self, folder: Path, groups: int, vae: Autoencoder, seed: int = 0) -> None:
        self.groups, self.seed = groups - groups % CHUNK, seed
        folder.mkdir(parents=True, exist_ok=True)
        shape = (self.groups, PICTURES_EACH, 3, SIZE, SIZE)
        paths = {name: folder / f"twins-{seed}.{name}" for name in ("drawn", "decoded", "apart", "done")}
        for name, size in (("drawn", int(np.prod(shape))), ("decoded", int(np.prod(shape))), ("apart", self.groups)):
            with open(paths[name], "ab") as file:
                file.truncate(max(paths[name].stat().st_size, size))
        self.drawn: np.ndarray = np.memmap(paths["drawn"], dtype=np.uint8, mode="r+", shape=shape)
        self.decoded: np.ndarray = np.memmap(paths["decoded"], dtype=np.uint8, mode="r+", shape=shape)
        self.apart: np.ndarray = np.memmap(paths["apart"], dtype=np.uint8, mode="r+", shape=(self.groups,))
        done = int(paths["done"].read_text()) if paths["done"].exists() else 0
        for chunk in Progress(range(done, self.groups // CHUNK), desc="drawing twins"):
            rows = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
            contents = [content for group in range(rows.start, rows.stop) for content in self.contents(group)]
            pictures = render([i for i, _ in contents], [s for _, s in contents])
            self.drawn[rows] = _bytes(pictures).view(CHUNK, *shape[1:]).numpy()
            self.decoded[rows] = _bytes(reconstruct(vae, pictures)).view(CHUNK, *shape[1:]).numpy()
            pairs = pictures.view(CHUNK, 2, 2, 3, SIZE, SIZE)
            apart = differs(pairs[:, :, 0].flatten(0, 1), pairs[:, :, 1].flatten(0, 1))
            self.apart[rows] = apart.view(CHUNK, 2).all(1).numpy()
            paths["done"].write_text(str(chunk + 1))
        # In memory: a file's pages may be taken away from a training at any time.
        self.drawn, self.decoded, self.apart = (np.array(a) for a in (self.drawn, self.decoded, self.apart))

    @cache  # noqa: B019 - there is one pool in a training
    def contents(self, group: int) -> list[tuple[Identity, Scene]]:
        """Who and what is in a group's four pictures."""
        rng = np.random.default_rng([self.seed, group])
        domain = str(rng.choice(list(DOMAINS), p=[d.share for d in DOMAINS.values()]))
        return list(zip(*draw_group(rng, domain, "train"), strict=True))

    def batch(self, groups: list[int], decoded: np.ndarray) -> Batch:
        """Some groups; ``decoded`` ``(G, 4)`` tells which pictures come from the autoencoder."""
        chosen = np.where(decoded[..., None, None, None], self.decoded[groups], self.drawn[groups])
        contents = [content for group in groups for content in self.contents(group)]
        pictures = torch.from_numpy(chosen).flatten(0, 1).float().div_(255)
        return Batch(pictures, contents, torch.from_numpy(self.apart[groups].astype(bool)))

    def batches(self, count: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Endless seeded batches of ``count`` groups, half of their pictures decoded; ``start`` skips what was seen."""
        step = start
        while True:
            rng = np.random.default_rng([seed, step])
            groups = np.sort(rng.choice(self.groups, size=count, replace=False)).tolist()
            yield self.batch(groups, rng.random((count, PICTURES_EACH)) < 0.5)
            step += 1


@torch.no_grad()
def reconstruct(vae: Autoencoder, pictures: Tensor) -> Tensor:
    """What the autoencoder makes of pictures, in [0, 1]."""
    with torch.autocast("cpu", torch.bfloat16):
        parts = [vae.decode(vae.encode(p.contiguous(memory_format=torch.channels_last))) for p in pictures.split(16)]
    return torch.cat(parts).float().clamp(0, 1).contiguous()


def _bytes(pictures: Tensor) -> Tensor:
    return (pictures * 255).round().byte()
