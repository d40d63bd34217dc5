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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from e4t_core.presets import PRESETS
from miniworld.heldout import concept_photo, held_out
from miniworld.models import load_judges

from . import host
from .arms import ARMS, LEARNED, SAMPLING, WEIGHTS, Drawer, Subject, subjects
from .picture_cache import cached
from .prompts import prompts, targets
from .quality_report import ArmScores, report
from .scoring import Target, Visibility, score

LOG = Path(__file__).parent / "heldout_runs.jsonl"


def load_subjects(split: str, count: int, domain: str = "face") -> list[Subject]:
    """The individuals, their concept photos and prompts."""
    people = []
    for number, identity in enumerate(held_out(domain, split, count)):
        scene, photo = concept_photo(identity)
        people.append((identity, scene, photo, prompts(scene, number)))
    return subjects(people)


def picture_folder(split: str, arm: str, changes: dict[str, Any], domain: str = "face") -> Path:
    """Where an arm's pictures lie: named by all that decides them but the code and the domain's config."""
    weights = [] if arm in ("other", "render", "nearest") else ["base", "text", "vae"] if arm != "vae" else ["vae"]
    if arm in LEARNED:
        crossed = arm == "crossed"
        weights += [w for of, w in WEIGHTS.items() if (of == domain) != crossed] + ["backbone"]
    decides = json.dumps([
        weights and host.weights_fingerprint(*weights), asdict(PRESETS[f"mini_{domain}"]) | changes if arm in LEARNED else {},
        asdict(SAMPLING),
    ])  # fmt: skip
    key = hashlib.sha256(decides.encode()).hexdigest()[:12]
    place = split if domain == "face" else f"{split}-{domain}"
    return host.ROOT / "runs" / "quality" / place / f"{arm.replace(' ', '_')}-{key}"


def picture_file(split: str, arm: str, changes: dict[str, Any], person: Subject, draws: int) -> Path:
    """Where one individual's pictures of an arm lie; the noise depends on its number, "other" on who stands in."""
    who = hashlib.sha256(person.identity.order() + person.other.order() * (arm == "other")).hexdigest()[:16]
    return (
        picture_folder(split, arm, changes, person.identity.domain) / f"{person.number:02d}-{who}-{draws}.safetensors"
    )


def kept_visibility(split: str, wanted: list[Target]) -> Visibility:
    """What can be seen in the targets' real renderings, kept because it takes a rendering for each attribute."""
    key = hashlib.sha256(repr(wanted).encode()).hexdigest()[:16]
    path = host.ROOT / "runs" / "quality" / split / f"visible-{key}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: counted.contiguous() for name, counted in Visibility.of(wanted).seen.items()}, path)
    return Visibility(load_file(path))


def measure(
    split: str, people: list[Subject], arms: list[str], draws: int, changes: dict[str, Any]
) -> dict[str, dict[str, ArmScores]]:
    """judge -> arm -> scores, drawing what is not there yet."""
    drawer, judges = Drawer(draws, changes, people[0].identity.domain), load_judges()
    strangers = [p.identity for p in people]
    wanted = [t for p in people for t in targets(p.identity, p.prompts) for _ in range(draws)]
    seen = kept_visibility(split, wanted)
    photos = [p.scene for p in people for _ in range(len(p.prompts) * draws)]
    each = len(people[0].prompts) * draws
    found: dict[str, dict[str, ArmScores]] = {name: {} for name in judges}
    concept_photos = torch.stack([p.photo for p in people])
    known = {n: j.read(concept_photos).identity.repeat_interleave(each, dim=0) for n, j in judges.items()}
    drawn: dict[str, list[Tensor]] = {arm: [] for arm in arms}
    for person in tqdm(people, desc=split, disable=None):
        for arm in arms:  # inside, so that arms that share a tuned concept find it in the result store
            path = picture_file(split, arm, changes, person, draws)
            drawn[arm].append(cached(path, lambda arm=arm, person=person: drawer.draw(arm, person)))  # type: ignore[misc]
    for arm, parts in drawn.items():
        pictures = torch.cat(parts)
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
    parser.add_argument("--no-unet", action="store_true", help="tune encoder and offsets only")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    changes = {
        key: value
        for key, value in (
            ("steps", options.steps),
            ("learning_rate", options.learning_rate),
            ("regularization", options.regularization),
            ("mask_threshold", options.mask_threshold),
            ("train_unet", False if options.no_unet else None),
        )
        if value is not None
    }
    chosen = set(options.arms.split(",")) | {"other", "coarse", "vae"}
    unknown = sorted(chosen - set(ARMS))
    if unknown:
        parser.error(f"there is no arm {unknown[0]!r}; there are: {', '.join(ARMS)}")
    arms = [arm for arm in ARMS if arm in chosen]
    started = time.monotonic()
    people = load_subjects(options.split, options.identities, options.domain)
    found = measure(options.split, people, arms, options.draws, changes)
    print(
        f"{len(people)} {options.split} {options.domain}s, {len(people[0].prompts)} prompts, {options.draws} draw(s) each"
    )
    figures, met = report(found, arms)
    if options.split == "held-out":
        record = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "domain": options.domain,
            "weights": host.weights_fingerprint("base", "text", "vae", WEIGHTS[options.domain], "backbone", *found),
            "identities": len(people),
            "draws": options.draws,
            "changes": changes,
            "seconds": round(time.monotonic() - started),
            "figures": figures,
        }
        with open(LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(f"appended to {LOG.relative_to(host.ROOT)}: commit it")
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
