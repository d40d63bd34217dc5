"""``python -m benchmarks.base_gate``: does the mini world's base model draw what its captions say?

512 captions of validation identities and 128 names, drawn by ComfyUI's own nodes (euler, 20 steps, CFG 5) from the
expanded checkpoint, are read by both judges. A caption's attribute counts if it can be seen in a rendering of that
caption. Then textual inversion: the word slot alone, trained on validation photos, must carry an identity.

Gates, lower 95 % limits: background 0.90, style 0.90, accessory 0.80, named identity attributes on average 0.75;
names 0.6 agreement (chance-corrected); textual inversion gains 10 identity points over the domain word.
Pictures are kept in runs/base_gate: an interrupted run goes on, and ``--captions 64`` is a quick look.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from commands.progress import Progress
from miniworld.attributes import EDITS
from miniworld.judge import Judge
from miniworld.models import load_judges
from miniworld.visibility import true_value, visible

from . import host
from .base_captions import Asked, base_captions, name_captions
from .picture_cache import cached
from .report import gate, table
from .scoring import Target, Visibility, named, ratio
from .statistics import bootstrap, weighted_ratio, wilson

GATES = {"background": 0.90, "style": 0.90, "accessory": 0.80}
NAMED_GATE, NAMES_GATE, INVERSION_GATE = 0.75, 0.6, 10.0
BATCH = 8


def draw_all(base: host.Base, asked: Sequence[Asked], label: str) -> Tensor:
    """One picture for each caption, batch by batch out of the cache."""
    folder = host.ROOT / "runs" / "base_gate" / host.weights_fingerprint("base", "text", "vae")
    parts = []
    for start in Progress(range(0, len(asked), BATCH), desc=f"drawing {label}"):
        texts = [a.text for a in asked[start : start + BATCH]]
        seeds = [start + k for k in range(len(texts))]
        path = folder / f"{label}-{start:04d}-{len(texts)}.safetensors"
        parts.append(cached(path, lambda texts=texts, seeds=seeds: host.draw(base, texts, seeds)))  # type: ignore[misc]
    return torch.cat(parts)


def told_and_visible(asked: Sequence[Asked]) -> dict[str, Tensor]:
    """Attribute -> ``(B,)``: said by the caption and visible in a rendering of it."""
    told = sorted({name for a in asked for name in a.told})
    hidden_by_nothing = [name for name in told if name in EDITS and name != "accessory"]
    seen = {name: torch.tensor([name in a.told for a in asked]) for name in told}
    rest = [name for name in told if name not in hidden_by_nothing]
    found = visible([a.identity for a in asked], [a.scene for a in asked], rest)
    return {name: seen[name] & found[:, rest.index(name)] if name in rest else seen[name] for name in told}


def caption_accuracy(judge: Judge, pictures: Tensor, asked: Sequence[Asked], counted: dict[str, Tensor]) -> list[bool]:
    """Prints accuracies by attribute and whether the gates are met."""
    reading = judge.read(pictures)
    rows, met, per_picture = [], [], []
    for name, rows_counted in counted.items():
        truth = torch.tensor([int(true_value(a.identity, a.scene, name)) for a in asked])
        right = (reading.answer(name) == truth) & rows_counted
        interval = wilson(float(right.sum()), int(rows_counted.sum()))
        rows.append([name, int(rows_counted.sum()), f"{interval.value:.3f}", f"{interval.low:.3f}"])
        if name not in EDITS:
            per_picture.append((right.double().numpy(), rows_counted.double().numpy()))
        elif name in GATES:
            met.append((name, interval.low, GATES[name]))
    print(table(["told attribute", "captions", "accuracy", "lower limit"], rows))
    mean = bootstrap(
        lambda w: np.mean([weighted_ratio(w, value, weight) for value, weight in per_picture], axis=0), len(asked)
    )
    results = [gate(f"{name}, lower limit", low, least=least) for name, low, least in met]
    results.append(
        gate("named attributes on average, lower limit", mean.low, least=NAMED_GATE, detail=f"value {mean.value:.3f}")
    )
    return results


def name_agreement(judge: Judge, pictures: Tensor, asked: Sequence[Asked]) -> bool:
    """NAMED of the name's own identity, chance-corrected."""
    targets = [Target(a.identity, a.scene, ()) for a in asked]
    sums = named(judge.read(pictures), targets, Visibility.of(targets))
    interval = bootstrap(lambda w: weighted_ratio(w, sums.value, sums.weight), len(asked))
    return gate(
        "names, agreement", interval.value, least=NAMES_GATE, detail=f"95 % {interval.low:.3f} to {interval.high:.3f}"
    )


def inversion_gain(judge: Judge, word: Tensor, face: Tensor, targets: Sequence[Target]) -> bool:
    """Identity points (100 x NAMED) of the inverted word over the domain word, same prompts and seeds."""
    seen = Visibility.of(targets)
    points = [100 * ratio(named(judge.read(pictures), targets, seen)) for pictures in (word, face)]
    detail = f"inverted {points[0]:.1f}, domain word {points[1]:.1f}"
    return gate("textual inversion, identity points gained", points[0] - points[1], least=INVERSION_GATE, detail=detail)


def main() -> int:
    """The command; its exit status is 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=512, help="fewer for a quick look")
    parser.add_argument("--names", type=int, default=128)
    parser.add_argument("--inversions", type=int, default=8, help="validation identities of textual inversion; 0: none")
    parser.add_argument("--inversion-steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    judges, base = load_judges(), host.load_base(host.mini_checkpoint())
    asked, names = base_captions(options.captions), name_captions(options.names)
    drawn, drawn_names = draw_all(base, asked, "captions"), draw_all(base, names, "names")
    counted = told_and_visible(asked)
    met = []
    for name, judge in judges.items():
        print(f"\n{name}, {len(asked)} captions and {len(names)} names")
        met += caption_accuracy(judge, drawn, asked, counted)
        met.append(name_agreement(judge, drawn_names, names))
    if options.inversions:
        from .textual_inversion import invert_and_draw

        word, face, targets = invert_and_draw(base, options.inversions, options.inversion_steps)
        for name, judge in judges.items():
            print(f"\n{name}, {options.inversions} validation identities")
            met.append(inversion_gain(judge, word, face, targets))
    print(
        f"\n{sum(met)} of {len(met)} gates met" + ("" if options.captions == 512 else " (a quick look: fewer captions)")
    )
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
