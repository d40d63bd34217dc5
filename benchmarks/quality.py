"""``python -m benchmarks.quality``: does E4T draw the individual of one photo, and still what the prompt asks for?

64 held-out identities, one concept photo each, 11 prompts, equal noise in every arm, read by two judges. Scores are NAMED,
UNNAMED, PROMPT and LEAK (``scoring.py``); gap closed = (arm - floor) / (VAE - floor) in NAMED, the floor being the larger
of "other" and "coarse". Intervals are 95 %, from 10,000 bootstrap resamples of identities, paired between arms.

Pictures are kept in runs/quality by weights, settings and arm: an interrupted run goes on. Choose settings with
``--split validation`` and few ``--identities``; every run on held-out identities is appended to
benchmarks/heldout_runs.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from commands.progress import Progress
from e4t_core.memory_plan import PLANS
from miniworld.attributes import Identity
from miniworld.models import load_judges
from miniworld.presets import PRESETS

from . import host
from .arms import ARMS, AS_A_CARD, WEIGHTS, Subject
from .pictures import Drawing, Painter, draw_missing
from .prompts import targets
from .quality_report import ArmScores, report
from .scoring import Target, Visibility, score

LOG = Path(__file__).parent / "heldout_runs.jsonl"


def kept_visibility(split: str, wanted: list[Target]) -> Visibility:
    """What can be seen in the targets' real renderings, kept because it takes a rendering for each attribute."""
    key = hashlib.sha256(repr(wanted).encode()).hexdigest()[:16]
    path = host.ROOT / "runs" / "quality" / split / f"visible-{key}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: counted.contiguous() for name, counted in Visibility.of(wanted).seen.items()}, path)
    return Visibility(load_file(path))


def measure(drawing: Drawing) -> dict[str, dict[str, ArmScores]]:
    """judge -> arm -> scores, drawing what is not there yet."""
    painter = Painter(drawing)
    drawn: dict[str, list[Tensor]] = {arm: [] for arm in drawing.arms}
    for number in Progress(range(len(painter.people)), desc=drawing.split):
        for arm, pictures in painter.pictures(number).items():
            drawn[arm].append(pictures)
    return judged(painter.people, drawn, drawing.split, drawing.draws)


def judged(
    people: Sequence[Subject],
    drawn: Mapping[str, Sequence[Tensor]],
    split: str,
    draws: int = 1,
    strangers: Sequence[Identity] = (),
) -> dict[str, dict[str, ArmScores]]:
    """judge -> arm -> scores of pictures ``(prompts * draws, 3, 128, 128)`` of each individual by arm.

    Args:
        strangers: that UNNAMED compares with; none: the individuals themselves.
    """
    judges = load_judges()
    strangers = strangers or [p.identity for p in people]
    wanted = [t for p in people for t in targets(p.identity, p.prompts) for _ in range(draws)]
    seen = kept_visibility(split, wanted)
    photos = [p.scene for p in people for _ in range(len(p.prompts) * draws)]
    each = len(people[0].prompts) * draws
    found: dict[str, dict[str, ArmScores]] = {name: {} for name in judges}
    concept_photos = torch.stack([p.photo for p in people])
    known = {n: j.read(concept_photos).identity.repeat_interleave(each, dim=0) for n, j in judges.items()}
    for arm, parts in drawn.items():
        pictures = torch.cat(list(parts))
        for name, judge in judges.items():
            scores = score(judge, pictures, wanted, seen, strangers, photos, known[name])
            found[name][arm] = ArmScores.by_identity(scores, len(people))
    return found


def main() -> int:
    """The command; its exit status is 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("held-out", "validation"), default="held-out")
    parser.add_argument(
        "--domain", choices=tuple(WEIGHTS), default="face", help="of the individuals and of the domain file"
    )
    parser.add_argument("--identities", type=int, default=64)
    parser.add_argument("--draws", type=int, default=1, help="pictures for each prompt (2 on a GPU)")
    parser.add_argument(
        "--arms",
        default=",".join(arm for arm in ARMS if arm != "crossed"),
        help="comma-separated; floors and the vae arm are always there; crossed must be asked for",
    )
    parser.add_argument("--steps", type=int, help="tuning steps, in place of the preset's")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--regularization", type=float)
    parser.add_argument("--mask-threshold", type=float)
    parser.add_argument("--no-find-subject", action="store_true", help="without a mask, learn all of the photo")
    parser.add_argument("--encoder-rate", type=float, help="the encoder's share of the learning rate")
    parser.add_argument("--word-strength", type=float, help="how much of the tuned word is kept")
    parser.add_argument("--high-noise", type=float, help="how much more often high noise levels are learned")
    parser.add_argument("--feature-gradient", action=argparse.BooleanOptionalAction, help="through the feature pass")
    parser.add_argument("--memory", choices=tuple(PLANS), help="the memory plan to learn with")
    parser.add_argument("--micro-batch", type=int, help="to learn with, in place of the preset's")
    parser.add_argument("--bfloat16", action="store_true", help="learn in the number type of graphics cards")
    parser.add_argument("--refine-every", type=int, help="predict the word at every so many evaluations only")
    parser.add_argument("--no-unet", action="store_true", help="tune encoder and offsets only")
    cores = torch.get_num_threads()
    parser.add_argument(
        "--processes",
        type=int,
        default=1 if torch.cuda.is_available() else min(cores, 4),
        help="that draw, 4 GB of memory each (default: one for each core, at most 4; one on a GPU)",
    )
    parser.add_argument("--threads", type=int, default=cores, help="of all processes together")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    changes = {
        key: value
        for key, value in (
            ("steps", options.steps),
            ("learning_rate", options.learning_rate),
            ("regularization", options.regularization),
            ("mask_threshold", options.mask_threshold),
            ("find_subject", False if options.no_find_subject else None),
            ("train_unet", False if options.no_unet else None),
            ("encoder_rate", options.encoder_rate),
            ("word_strength", options.word_strength),
            ("high_noise", options.high_noise),
            ("memory", options.memory),
            ("micro_batch", options.micro_batch),
            (AS_A_CARD, options.bfloat16 or None),
            ("refine_every", options.refine_every),
            ("stop_feature_gradient", None if options.feature_gradient is None else not options.feature_gradient),
        )
        if value is not None
    }
    chosen = set(options.arms.split(",")) | {"other", "coarse", "vae"}
    unknown = sorted(chosen - set(ARMS))
    if unknown:
        parser.error(f"there is no arm {unknown[0]!r}; there are: {', '.join(ARMS)}")
    arms = [arm for arm in ARMS if arm in chosen]
    started = time.monotonic()
    drawing = Drawing(options.split, options.domain, options.identities, tuple(arms), options.draws, changes)
    draw_missing(drawing, options.processes, max(1, options.threads // max(1, options.processes)))
    found = measure(drawing)
    print(f"{options.identities} {options.split} {options.domain}s, {options.draws} picture(s) for each prompt")
    figures, met = report(found, arms)
    if options.split == "held-out":
        record = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "domain": options.domain,
            "weights": host.weights_fingerprint("base", "text", "vae", WEIGHTS[options.domain], "backbone", *found),
            "identities": options.identities,
            "draws": options.draws,
            "changes": changes,
            "settings": asdict(PRESETS[WEIGHTS[options.domain]]) | changes,
            "seconds": round(time.monotonic() - started),
            "figures": figures,
        }
        with open(LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(f"appended to {LOG.relative_to(host.ROOT)}: commit it")
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
