"""``python -m benchmarks.regions``: two people in one picture, each in a half of it.

Held-out individuals are learned from one photo each, and drawn with each other: the first with the second, the second with the
third, and so on in a circle. A picture is twice as wide as the mini world's; each half has a prompt of its own. Arms:

* "alone": each of the two by themselves, by MODEL and CLIP as the node that learned them gives them. The reference.
* "own": E4T Regions, each region a picture of its own.
* "whole": E4T Regions, each region sees all of the picture.
* "stock": without this pack: exported LoRAs as hooks, exported embeddings, and areas, by stock nodes.
* "chained": both concepts in one MODEL, one prompt for each half by areas: what there was before regions.

A half is read by both judges as any picture is. NAMED: as whoever belongs there; bleeding: as the OTHER person, above what the
picture of the person alone has of the other. Gates, set before anything was measured, for the better of "own" and "whole": NAMED within 0.1 of alone; bleeding at
most 0.05; PROMPT at least 0.9 of alone. Seconds are of one process with one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from commands.progress import Progress
from e4t_core.files.stock_embedding import stock_state
from miniworld.models import load_judges

from . import host
from .arms import SAMPLING, Drawer, Subject, load_subjects, personalize
from .picture_cache import cached
from .prompts import Prompt, targets
from .quality import kept_visibility
from .report import gate, table
from .scoring import Target, Visibility, named, prompt_classes
from .statistics import Interval, bootstrap

ARMS = ("alone", "own", "whole", "stock", "chained")
CHOSEN = (0, 1, 3, 6)
"""Of a person's prompts: plain, a style, a background, an accessory."""
SIDE = 16  # of a half, in latent cells
NAMED_GATE, BLEEDING_GATE, PROMPT_GATE = 0.1, 0.05, 0.9
TRIGGERS = ("S*", "T*")
ROOT = host.ROOT / "runs" / "regions"


@dataclass(frozen=True)
class Pair:
    """Two people with their concepts, left and right, and the pair's number."""

    number: int
    people: tuple[Subject, Subject]
    concepts: tuple[Any, Any]

    def prompts(self, index: int) -> tuple[Prompt, Prompt]:
        first, second = (person.prompts[CHOSEN[index]] for person in self.people)
        return first, second


class Painter:
    """Draws pairs, one picture for each prompt and arm."""

    def __init__(self, drawer: Drawer) -> None:
        self.drawer, self.base = drawer, drawer.base
        self.store = host.pack("nodes.host.learning.result_store").STORE
        self.seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
        self._loras: dict[str, tuple[dict[str, Tensor], Path]] = {}
        self._folder = Path(tempfile.mkdtemp())

    @torch.inference_mode()
    def draw(self, arm: str, pair: Pair, index: int) -> Tensor:
        """``(2, 3, 128, 128)``: the left and the right half."""
        texts = [prompt.text for prompt in pair.prompts(index)]
        makes: dict[str, Callable[[Pair, Sequence[str]], tuple[Any, Any, Any]]] = {
            "own": lambda p, t: self._regions(p, t, "a picture of its own"),
            "whole": lambda p, t: self._regions(p, t, "sees the whole picture"),
            "stock": self._stock,
            "chained": self._chained,
        }
        start = torch.randn((1, 4, SIDE, 2 * SIDE), generator=torch.Generator().manual_seed(1000 * pair.number + index))
        if arm == "alone":
            halves = []
            for number, (concept, text) in enumerate(zip(pair.concepts, texts, strict=True)):
                model, clip = self._applied(concept)
                piece = start[..., number * SIDE : (number + 1) * SIDE]
                halves.append(self._sampled(arm, model, host.encode(clip, [text.format("S*")]), self._empty(), piece))
            return torch.cat(halves)
        model, positive, negative = makes[arm](pair, texts)
        picture = self._sampled(arm, model, positive, negative, start)
        return torch.cat(picture.chunk(2, dim=3))

    def _empty(self) -> Any:
        return host.encode(self.base.clip, [""])

    def _applied(self, concept: Any, model: Any = None, clip: Any = None, trigger: str = "S*") -> tuple[Any, Any]:
        apply = host.pack("nodes.host.learning.apply")
        called = replace(concept, trigger=trigger)
        found: tuple[Any, Any] = apply.applied(model or self.base.model, clip or self.base.clip, called, self.store)
        return found

    def _sampled(self, arm: str, model: Any, positive: Any, negative: Any, start: Tensor) -> Tensor:
        import comfy.sample

        begun = time.monotonic()
        samples = comfy.sample.sample(
            model, start, SAMPLING.steps, host.GUIDANCE, SAMPLING.sampler, host.SCHEDULER, positive, negative,
            torch.zeros_like(start), disable_pbar=True,
        )  # fmt: skip
        self.seconds[arm].append(time.monotonic() - begun)
        return self.base.vae.decode(samples).movedim(-1, 1)[:, :3].float().clamp(0, 1).cpu().clone()

    def _regions(self, pair: Pair, texts: Sequence[str], each: str) -> tuple[Any, Any, Any]:
        node = host.pack("nodes.regions").Regions
        model, positive, negative, _ = node.execute(
            self.base.model, self.base.clip, host.encode(self.base.clip, ["two people"]), self._empty(), *pair.concepts,
            "\n".join(texts), each_region=each,
        ).args  # fmt: skip
        return model, positive, negative

    def _chained(self, pair: Pair, texts: Sequence[str]) -> tuple[Any, Any, Any]:
        model, clip = self.base.model, self.base.clip
        for concept, trigger in zip(pair.concepts, TRIGGERS, strict=True):
            model, clip = self._applied(concept, model, clip, trigger)
        encoded = [host.encode(clip, [text.format(name)]) for text, name in zip(texts, TRIGGERS, strict=True)]
        return model, _halves(encoded), _halves([self._empty()] * 2)

    def _stock(self, pair: Pair, texts: Sequence[str]) -> tuple[Any, Any, Any]:
        import comfy.hooks
        import comfy.sd

        encoded, hooks = [], []
        for concept, text in zip(pair.concepts, texts, strict=True):
            lora, word = self._exported(concept)
            made = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
            clip = self.base.clip.clone()
            inner = getattr(clip.tokenizer, clip.tokenizer.clip)
            inner.embedding_directory = [*_listed(inner.embedding_directory), str(word.parent)]
            encoded.append(host.encode(clip, [text.format(f"embedding:{word.stem}")]))
            hooks.append(made)
        return self.base.model, _halves(encoded, hooks), _halves([self._empty()] * 2, hooks)

    def _exported(self, concept: Any) -> tuple[dict[str, Tensor], Path]:
        """The LoRA and the embedding that Export E4T Concept writes, with its defaults."""
        key = concept.fingerprint
        if key not in self._loras:
            made = host.pack("nodes.host.exporting.lora").make_lora(concept, self.base.model, False, 0.2, 0, False)
            word = self._folder / f"word{len(self._loras)}.safetensors"
            save_file(stock_state(concept.embedding), word)
            path = self._folder / f"lora{len(self._loras)}.safetensors"
            save_file(dict(made.tensors), path)
            self._loras[key] = load_file(path), word
        return self._loras[key]


def _listed(folders: Any) -> list[str]:
    return [folders] if isinstance(folders, str) else list(folders or ())


def _halves(encoded: Sequence[Any], hooks: Sequence[Any] = ()) -> Any:
    """Conditionings of the left and the right half, as Conditioning (Set Area with Percentage) and (Combine) make them."""
    import comfy.hooks

    found: list[Any] = []
    for number, conditioning in enumerate(encoded):
        area = {"area": ("percentage", 1.0, 0.5, 0.0, 0.5 * number), "strength": 1.0}
        placed = [[tensor, {**values, **area}] for tensor, values in conditioning]
        found += comfy.hooks.set_hooks_for_conditioning(placed, hooks[number]) if hooks else placed
    return found


@dataclass(frozen=True)
class Scores:
    """Of one arm by one judge, per pair: sums of points and of what they are out of."""

    named: np.ndarray
    as_other: np.ndarray
    prompt: np.ndarray


def scored(pictures: Tensor, wanted: Sequence[Target], others: Sequence[Target], seen: Sequence[Visibility], judge: Any, pairs: int) -> Scores:  # fmt: skip
    """Means over each pair's halves."""
    reading = judge.read(pictures)
    own, other = named(reading, wanted, seen[0]), named(reading, others, seen[1])
    classes = prompt_classes(reading, wanted).values()

    def mean(value: np.ndarray, weight: np.ndarray) -> np.ndarray:
        found: np.ndarray = value.reshape(pairs, -1).sum(1) / np.maximum(weight.reshape(pairs, -1).sum(1), 1e-9)
        return found

    nothing = np.zeros(len(wanted))
    points = sum((part.value for part in classes), nothing)
    counts = sum((part.weight for part in classes), nothing)
    return Scores(mean(own.value, own.weight), mean(other.value, other.weight), mean(points, counts))


def main() -> int:
    """The command; its exit status is 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--split", choices=("held-out", "validation"), default="held-out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sheet", type=Path, default=ROOT / "sheet.png", help="where the first pictures go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    arms = [arm for arm in ARMS if arm in {*options.arms.split(","), "alone"}]
    drawer = Drawer(1, {}, "face")
    people, painter = load_subjects(options.split, options.pairs, "face"), Painter(drawer)
    concepts = [_learned(drawer, person) for person in Progress(people, desc="learning")]
    pairs = [
        Pair(n, (people[n], people[(n + 1) % len(people)]), (concepts[n], concepts[(n + 1) % len(people)]))
        for n in range(len(people))
    ]
    folder = ROOT / f"{options.split}-{host.weights_fingerprint('base', 'text', 'vae', 'faces', 'backbone')}"
    pictures: dict[str, list[Tensor]] = {arm: [] for arm in arms}
    for pair in Progress(pairs, desc="pairs"):
        for arm in arms:
            for index in range(len(CHOSEN)):
                path = folder / arm / f"{pair.number:02d}-{index}.safetensors"
                pictures[arm].append(cached(path, lambda a=arm, p=pair, i=index: painter.draw(a, p, i)))  # type: ignore[misc]
    _sheet(pictures, pairs[0], options.sheet)
    return report(arms, pairs, pictures, painter.seconds, options.split)


def _learned(drawer: Drawer, person: Subject) -> Any:
    tuned = personalize(drawer.base, drawer.domain("face"), person.photo, None, drawer.settings())
    (held,) = host.pack("nodes.host.sampling.patched_model").held_concepts(tuned.model)
    return held.concept


def report(arms: Sequence[str], pairs: Sequence[Pair], pictures: dict[str, list[Tensor]], seconds: dict[str, list[float]], split: str) -> int:  # fmt: skip
    """Prints tables and gates; the command's exit status."""
    wanted = [target for pair in pairs for i in range(len(CHOSEN)) for person, prompt in zip(pair.people, pair.prompts(i), strict=True) for target in targets(person.identity, (prompt,))]  # fmt: skip
    others = [
        replace(target, identity=pair.people[1 - side].identity)
        for pair in pairs
        for i in range(len(CHOSEN))
        for side, target in enumerate(wanted[2 * (pair.number * len(CHOSEN) + i) :][:2])
    ]
    seen = [kept_visibility(split, wanted), kept_visibility(split, others)]
    rows, met = [], []
    for name, judge in load_judges().items():
        found = {a: scored(torch.cat(pictures[a]), wanted, others, seen, judge, len(pairs)) for a in arms}
        alone = found["alone"]
        for arm, own in found.items():
            lost = _interval(alone.named - own.named)
            bleeding = _interval(own.as_other - alone.as_other)
            kept = bootstrap(lambda w, o=own, a=alone: (w @ o.prompt) / (w @ a.prompt), len(pairs))  # type: ignore[misc]
            rows.append(
                (name, arm, f"{own.named.mean():.2f}", f"{lost}", f"{bleeding}", f"{kept}", _mean(seconds[arm]))
            )
            if arm in ("own", "whole"):
                met.append(
                    (
                        arm,
                        [
                            gate(f"{name}, {arm}: NAMED below alone", lost.value, most=NAMED_GATE),
                            gate(f"{name}, {arm}: bleeding", bleeding.value, most=BLEEDING_GATE),
                            gate(f"{name}, {arm}: PROMPT as share of alone", kept.value, least=PROMPT_GATE),
                        ],
                    )
                )
    header = ("judge", "arm", "NAMED", "below alone", "bleeding", "share of PROMPT", "s a picture")
    print(f"\n{table(header, rows)}\n")
    return 0 if any(all(all(g) for a, g in met if a == arm) for arm in ("own", "whole")) else 1


def _interval(values: np.ndarray) -> Interval:
    return bootstrap(lambda w: w @ values / w.sum(axis=1), len(values))


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f}" if values else "kept"


def _sheet(pictures: dict[str, list[Tensor]], pair: Pair, path: Path) -> None:
    """The first pair: photos, then a row for each arm."""
    rows = [torch.cat([person.photo for person in pair.people] * len(CHOSEN), dim=2)]
    rows += [torch.cat([torch.cat(list(p), dim=2) for p in found[: len(CHOSEN)]], dim=2) for found in pictures.values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = (torch.cat(rows, dim=1).movedim(0, -1) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(whole).save(path)


if __name__ == "__main__":
    raise SystemExit(main())
