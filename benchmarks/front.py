"""``python -m benchmarks.front``: likeness against obedience, and what becomes of the words around a concept.

Tuning on one photo costs what the untuned domain still had: style, background, a trait named otherwise, and the domain word
itself, which turns into the person. Here each way to lose less is an arm; individuals, prompts (``front_prompts.py``) and noise
are the same in all of them, and both judges read all pictures. For each arm:

* NAMED: what words can name of the person, of ``single`` and ``compound``, chance-corrected;
* UNNAMED: proportions and marks, for which there are no words, of the same pictures, against the mean error of the other individuals;
* likeness: the identity net's cosine with the photo, of the same pictures (a watercolor is less like any photo);
* single, compound: the edits that were asked for, chance-corrected, the mean of style, accessory and background;
* edited: how often the changed trait is there, chance-corrected;
* pull: NAMED towards the person where the domain word alone was asked for, less what the base model has by chance;
* names: NAMED of a known name, as a share of what the base model has;
* taken: marks of the second concept's person found in pictures of the first, of those that can be seen.

Choose with ``--split validation``; ``--arms`` names what is compared. ``--fast`` draws with the mini world's networks as they were
trained, without ComfyUI (``front_fast.py``). Tuned concepts and pictures are kept in runs/front.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from commands.progress import Progress
from miniworld.attributes import DOMAINS, Identity, Scene
from miniworld.heldout import concept_photo, held_out
from miniworld.judge import Judge, Reading, questions
from miniworld.models import load_judges
from miniworld.presets import PRESETS
from miniworld.visibility import true_value

from . import host
from .arms import SAMPLING, WEIGHTS, WORD, Drawer, Subject
from .compact_concepts import Studio, Tuned
from .front_arms import ARMS, Arm
from .front_fast import FastPainter
from .front_prompts import Asked, asked
from .picture_cache import cached, that_count
from .prompts import seed_of
from .report import table
from .scoring import Target, Visibility, chance_corrected, named, prompt_classes, ratio, unnamed

ROOT = host.ROOT / "runs" / "front"
DOMAIN, SECOND = "face", "T*"
PRESET = PRESETS[WEIGHTS[DOMAIN]]
EDITS = ("style", "accessory", "background")
COLUMNS = ("NAMED", "UNNAMED", "likeness", "single", "compound", "edited", "pull", "names", "taken")


class Painter:
    """Draws arms of the first individuals of a split, keeping what it has made."""

    def __init__(self, split: str, count: int) -> None:
        self.people, self.asked = [], []
        for number, identity in enumerate(held_out(DOMAIN, split, count)):
            scene, photo = concept_photo(identity)
            # The quality benchmark's prompts are none of these.
            self.people.append(Subject(number, identity, scene, photo, identity, ()))
            self.asked.append(asked(identity, scene, number))
        weights = host.weights_fingerprint("base", "text", "vae", "backbone", WEIGHTS[DOMAIN])
        self._folder = ROOT / f"{split}-{weights}"
        self._studios: dict[str, Studio] = {}

    def pictures(self, number: int, arm: Arm) -> Tensor:
        """All pictures of an individual in an arm, ``(16, 3, 128, 128)``."""
        # How many there are decides whose concept stands beside the last one's.
        other = (number + 1) % len(self.people)
        key = hashlib.sha256(
            repr((replace(arm, name=""), that_count(PRESET), self.asked[number], other)).encode()
        ).hexdigest()[:12]
        return cached(self._folder / key / f"{number:02d}.safetensors", lambda: self._draw(number, arm))

    def _studio(self, arm: Arm) -> tuple[Studio, Drawer, Path]:
        key = json.dumps(arm.settings, sort_keys=True)
        if key not in self._studios:
            self._studios[key] = Studio(Drawer(1, arm.settings, DOMAIN), DOMAIN)
        studio = self._studios[key]
        decides = json.dumps(that_count(studio.drawer.settings()), sort_keys=True)
        return studio, studio.drawer, self._folder / f"tuned-{hashlib.sha256(decides.encode()).hexdigest()[:12]}"

    def _draw(self, number: int, arm: Arm) -> Tensor:
        studio, drawer, folder = self._studio(arm)
        wanted, coarse = self.asked[number], DOMAINS[DOMAIN].word
        if arm.base:
            return self._all(wanted, number, lambda one: [(drawer.base, one.text.format(coarse), 1.0)])
        other = (number + 1) % len(self.people)
        first = self._held(studio, drawer, folder, number, arm)
        second = self._held(studio, drawer, folder, other, arm)
        alone = [_knowing(drawer.base, held, WORD) for held in first]
        both = [_knowing(base, held, SECOND) for base, held in zip(alone, second, strict=True)]

        def stages(one: Asked) -> list[tuple[host.Base, str, float]]:
            bases = both if one.kind == "pair" else alone
            text = one.text.format(coarse if one.kind == "class" else WORD)
            return [(bases[0], text, arm.late), (bases[1], text, 1.0)] if arm.late else [(bases[0], text, 1.0)]

        return self._all(wanted, number, stages)

    def _held(self, studio: Studio, drawer: Drawer, folder: Path, number: int, arm: Arm) -> list[Any]:
        """The concept as it is drawn: of an arm that is late, first as it is drawn without its own changes."""
        tuned = Tuned.kept(folder / f"{number:02d}.safetensors", drawer, self.people[number])
        encoder = studio.encoder(tuned)
        scaled = {name: arm.strength * value for name, value in tuned.differences.items()}
        name = f"{arm.name} {number}"
        made = [studio.held(tuned, scaled, encoder, name)]
        if arm.late:
            made.insert(0, studio.held(tuned, {}, encoder, f"{name} at first"))
        drawn = [replace(held.concept.sampling, needs_trigger=arm.needs_trigger) for held in made]
        return [
            held.drawn_as(replace(held.concept, sampling=sampling)) for held, sampling in zip(made, drawn, strict=True)
        ]

    def _all(
        self, wanted: Sequence[Asked], number: int, stages: Callable[[Asked], list[tuple[host.Base, str, float]]]
    ) -> Tensor:
        return torch.cat([_staged(stages(one), seed_of(number, at, 7)) for at, one in enumerate(wanted)])


def _knowing(base: host.Base, held: Any, word: str) -> host.Base:
    """MODEL and CLIP that know one concept more."""
    memory = host.pack("nodes.host.learning.result_store").STORE.prompts
    held = held.drawn_as(replace(held.concept, trigger=word), held.strength)
    concept = held.concept
    with torch.inference_mode():
        clip = host.pack("nodes.host.prompt.concept_clip").with_concept(
            base.clip, word, concept.fingerprint, concept.embedding, memory
        )
        model = host.pack("nodes.host.sampling.patched_model").with_concept(base.model, held, memory)
    return replace(base, model=model, clip=clip)


@torch.inference_mode()
def _staged(stages: list[tuple[host.Base, str, float]], seed: int) -> Tensor:
    """One picture ``(1, 3, H, W)`` by several MODELs one after the other, each up to a share of the sampling steps."""
    import comfy.sample

    start, done = host.noise([seed]), 0
    samples = torch.zeros_like(start)
    for number, (base, text, share) in enumerate(stages):
        until = round(share * SAMPLING.steps)
        samples = comfy.sample.sample(
            base.model, start if number == 0 else torch.zeros_like(start), SAMPLING.steps, host.GUIDANCE,
            SAMPLING.sampler, host.SCHEDULER, host.encode(base.clip, [text]), host.encode(base.clip, [""]), samples,
            disable_noise=number > 0, start_step=done, last_step=until, force_full_denoise=until == SAMPLING.steps,
            disable_pbar=True,
        )  # fmt: skip
        done = until
    base = stages[0][0]
    return base.vae.decode(samples).movedim(-1, 1)[:, :3].float().clamp(0, 1).cpu().clone()


def figures(judge: Judge, painter: Painter | FastPainter, pictures: list[Tensor], stock: Reading) -> dict[str, float]:
    """All columns of an arm by one judge.

    Args:
        pictures: of each individual.
        stock: what the judge says of the base model's.
    """
    flat = [one for wanted in painter.asked for one in wanted]
    reading = judge.read(torch.cat(pictures))
    who = [person.identity for person, wanted in zip(painter.people, painter.asked, strict=True) for _ in wanted]
    photos = judge.read(torch.stack([person.photo for person in painter.people])).identity
    of = torch.tensor([n for n, wanted in enumerate(painter.asked) for _ in wanted])
    likeness = (reading.identity * photos[of]).sum(1).numpy()

    def rows(*kinds: str) -> np.ndarray:
        return np.flatnonzero([one.kind in kinds for one in flat])

    def names_of(read: Reading, kinds: tuple[str, ...], identities: Sequence[Identity]) -> float:
        at = rows(*kinds)
        targets = [Target(identities[n], flat[n].scene, flat[n].edits) for n in at]
        return ratio(named(_part(read, at), targets, Visibility.of(targets)))

    def obeyed(kind: str) -> float:
        at = rows(kind)
        found = prompt_classes(_part(reading, at), [Target(who[n], flat[n].scene, flat[n].edits) for n in at])
        return float(np.mean([ratio(found[edit]) for edit in EDITS]))

    def unnamed_of(*kinds: str) -> float:
        at = rows(*kinds)
        targets = [Target(who[n], flat[n].scene, flat[n].edits) for n in at]
        strangers = [person.identity for person in painter.people]
        return unnamed(_part(reading, at), targets, Visibility.of(targets), strangers).score()

    known = [one.identity for one in flat]
    concept = ("single", "compound")
    return {
        "NAMED": names_of(reading, concept, who),
        "UNNAMED": unnamed_of(*concept),
        "likeness": float(likeness[rows(*concept)].mean()),
        "single": obeyed("single"),
        "compound": obeyed("compound"),
        "edited": _edited(reading, flat, rows("edited")),
        "pull": names_of(reading, ("class",), who) - names_of(stock, ("class",), who),
        "names": names_of(reading, ("names",), known) / names_of(stock, ("names",), known),
        "taken": _taken(reading, painter, flat, rows("pair")),
    }


def _part(reading: Reading, rows: np.ndarray) -> Reading:
    at = torch.from_numpy(rows)
    return Reading(
        {question: logits[at] for question, logits in reading.logits.items()},
        reading.shift[at],
        {name: values[at] for name, values in reading.measures.items()},
        reading.identity[at],
    )


def _edited(reading: Reading, flat: Sequence[Asked], rows: np.ndarray) -> float:
    points = []
    for n in rows:
        question = f"{DOMAIN} {flat[n].trait}"
        right = reading.answer(question)[n] == true_value(flat[n].identity, flat[n].scene, question)
        points.append(float(chance_corrected(right, questions()[question])))
    return float(np.mean(points))


def _taken(reading: Reading, painter: Painter | FastPainter, flat: Sequence[Asked], rows: np.ndarray) -> float:
    """Marks of the other person where this one has none or another, as a share of those places."""
    of = [n for n, wanted in enumerate(painter.asked) for _ in wanted]
    found, places = 0, 0
    for n in rows:
        own = painter.people[of[n]].identity
        other = painter.people[(of[n] + 1) % len(painter.people)].identity
        for place in own.spec.marks:
            question = f"{DOMAIN} mark {place}"
            theirs = true_value(other, Scene(), question)
            if theirs > 0 and theirs != true_value(own, flat[n].scene, question):
                places += 1
                found += int(reading.answer(question)[n]) == theirs
    return found / max(places, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("validation", "held-out"), default="validation")
    parser.add_argument("--identities", type=int, default=6)
    parser.add_argument("--arms", help="comma-separated names; default: all")
    parser.add_argument("--fast", action="store_true", help="without ComfyUI, by the networks before they are widened")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    by_name = {arm.name: arm for arm in ARMS}
    chosen = options.arms.split(",") if options.arms else list(by_name)
    unknown = [name for name in chosen if name not in by_name]
    if unknown:
        parser.error(f"there is no arm {unknown[0]!r}; there are: {', '.join(by_name)}")
    arms = [by_name["base"], *(by_name[name] for name in chosen if name != "base")]
    started = time.monotonic()
    painter: Painter | FastPainter = Painter(options.split, options.identities)
    if options.fast:
        painter = FastPainter(painter.people, painter.asked, ROOT / options.split)
    drawn: dict[str, list[Tensor]] = {arm.name: [] for arm in arms}
    for number in Progress(range(options.identities), desc=options.split):
        for arm in arms:
            drawn[arm.name].append(painter.pictures(number, arm))
    print(f"{options.identities} {options.split} {DOMAIN}s, {time.monotonic() - started:.0f} s\n")
    for name, judge in load_judges().items():
        stock = judge.read(torch.cat(drawn["base"]))
        found = {arm: figures(judge, painter, parts, stock) for arm, parts in drawn.items()}
        rows = [(arm, *(f"{values[column]:.2f}" for column in COLUMNS)) for arm, values in found.items()]
        print(f"{table((name, *COLUMNS), rows)}\n")


if __name__ == "__main__":
    main()
