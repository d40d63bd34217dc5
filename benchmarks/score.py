"""``python -m benchmarks.score .dev/demo/demo.json``: what the two judges say of the demo's pictures.

The demo's photo shows the first held-out identity by hash. For each picture: NAMED and UNNAMED against that
individual, and whether the style, accessory and background that the prompt asks for are there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from miniworld.attributes import ACCESSORIES, BACKGROUNDS, STYLES, ZOOMS, Scene
from miniworld.captions import compose, scene_phrases
from miniworld.heldout import concept_photo, held_out
from miniworld.judge import ARCHITECTURES, Judge
from miniworld.models import MissingWeightsError, load_judge

from .report import table
from .scoring import Scores, Target, Visibility, ratio, score


def read_picture(path: Path) -> Tensor:
    """``(3, 128, 128)`` in [0, 1]."""
    pixels = np.array(Image.open(path).convert("RGB"))
    return torch.from_numpy(pixels).movedim(-1, 0).float() / 255


def scene_of(prompt: str) -> tuple[Scene, tuple[str, ...]]:
    """What a prompt of this world asks for: a scene, and the edits that it names.

    Raises:
        ValueError: its words are not this world's.
    """
    head, *parts = prompt.split(", ")
    style = next((s for s in range(len(STYLES)) if head.startswith(compose(s, "", []).rstrip())), None)
    if style is None:
        raise ValueError(f"The prompt {prompt!r} names none of the styles {', '.join(STYLES)}.")
    asked: dict[str, int] = {"style": style}
    for part in parts:
        for edit, values in (("accessory", ACCESSORIES), ("background", BACKGROUNDS), ("zoom", ZOOMS)):
            alone = {e: e == edit for e in ("accessory", "background", "zoom")}
            for index in range(len(values)):
                if scene_phrases(Scene().edited(**{edit: index}), **alone) == [part]:
                    asked[edit] = index
    return Scene().edited(**asked), tuple(asked)


def shipped_judges() -> dict[str, Judge]:
    """The judges whose weights are there; says which are not."""
    found = {}
    for name in ARCHITECTURES:
        try:
            found[name] = load_judge(name)
        except MissingWeightsError as error:
            print(f"{name} says nothing: {error}")
    return found


def score_rows(report: dict[str, Any], folder: Path, judges: dict[str, Judge]) -> list[tuple[str, str, Scores]]:
    """(judge, row, scores) for both rows of a demo's report."""
    identity = held_out()[0]
    photo_scene, photo = concept_photo(identity)
    found = []
    for name, judge in judges.items():
        photo_identity = judge.read(photo[None]).identity
        for row, entries in report["rows"].items():
            targets = [Target(identity, *scene_of(entry["prompt"])) for entry in entries]
            pictures = torch.stack([read_picture(folder / entry["image"]) for entry in entries])
            scores = score(
                judge,
                pictures,
                targets,
                Visibility.of(targets),
                held_out(),
                [photo_scene] * len(entries),
                photo_identity.expand(len(entries), -1),
            )
            found.append((name, row, scores))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, nargs="?", default=Path(".dev/demo/demo.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.report.is_file():
        raise SystemExit(f"{options.report} is missing: run 'python3 dev.py demo' first.")
    report = json.loads(options.report.read_text(encoding="utf-8"))
    judges = shipped_judges()
    if not judges:
        return
    found = score_rows(report, options.report.parent, judges)
    words = {"word": f"with {report['word']}", "face": f"with “{report['domain_word']}”"}
    rows = []
    for judge, row, scores in found:
        classes = [ratio(scores.prompt[edit]) for edit in ("style", "accessory", "background")]
        figures = [ratio(scores.named), scores.unnamed.score(), *classes, float(scores.likeness.mean())]
        rows.append([judge, words.get(row, row), *(f"{value:.2f}" for value in figures)])
    print(table(["judge", "row", "NAMED", "UNNAMED", "style", "accessory", "background", "likeness"], rows))
    print("1 = as in the photo (or prompt), 0 = chance (UNNAMED: a stranger); likeness: the identity net's cosine.")


if __name__ == "__main__":
    main()
