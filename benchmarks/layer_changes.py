"""``python -m benchmarks.layer_changes``: which layers change most when a whole UNet is tuned (the paper's table 1).

The paper took 50 fully tuned networks, and so found that attention matters. Here DreamBooth tunes all weights of the mini world's
UNet on four photos of one validation individual, without offsets, ranks or prior pictures. As in the paper (section 3.2) a
layer's score is the mean of |W - W0| over the mean of |W0|, averaged over networks and then over the layers of a kind; only matrices
and filters count. Beside it, the relative change ||W - W0|| / ||W0|| of Custom Diffusion (Kumari et al. 2022), and the mean step
|W - W0| itself: an optimizer that moves every number alike gives small weights large scores, whatever they are for.

What was measured is kept in runs/layer_changes: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from commands.progress import Progress
from e4t_core.methods.dreambooth import DreamBooth, DreamBoothSettings
from e4t_core.photos import Photos
from e4t_core.run import BaseModel
from e4t_core.training import train
from e4t_core.weight_changes import full_differences
from miniworld.attributes import DOMAINS, Identity
from miniworld.concept_photos import concept_scene
from miniworld.heldout import concept_photo, held_out
from miniworld.models import load_text, load_unet, load_vae
from miniworld.renderer import render
from miniworld.training_unet import TrainingText, TrainingUNet

from . import host
from .contact_sheet import GRAY, INK, PAPER, font
from .report import table
from .statistics import bootstrap

FOLDER = host.ROOT / "runs" / "layer_changes"
DOMAIN, PHOTOS = "face", 4
# All steps together may move a weight four times as far as E4T's tuning may. Nothing is drawn to preserve.
SETTINGS = DreamBoothSettings(
    steps=300, learning_rate=2e-5, batch=4, micro_batch=4, prior_weight=0.0, templates="a photo of {}"
)
KINDS: Mapping[str, str] = {
    r"attn2\.to_(q|k|v|out)": "cross-attention",
    r"attn1\.to_(q|k|v|out)": "self-attention",
    r"\.ff\.": "feed-forward",
    r"proj_(in|out)": "in and out of attention",
    r"time_emb": "timestep",
    r"conv|samplers": "convolutions",
}
"""Regular expression of canonical names -> kind of layer; the first that is found."""
PARTS = ("to_q", "to_k", "to_v", "to_out")
NORMS, BIASES = "norms", "biases"


def kind_of(name: str, dimensions: int) -> str:
    """The kind of a parameter by its canonical name.

    Raises:
        ValueError: a matrix or filter of no known kind.
    """
    if dimensions < 2:
        return BIASES if name.endswith(".bias") and "norm" not in name else NORMS
    for pattern, kind in KINDS.items():
        if re.search(pattern, name):
            return kind
    raise ValueError(f"The parameter {name!r} is of no known kind of layer.")


def scores(base: Tensor, difference: Tensor) -> dict[str, float]:
    """How far one weight went: by the paper, by Custom Diffusion, and the mean step."""
    step, size = float(difference.abs().mean()), float(base.abs().mean())
    # A bias that was zero everywhere has no size to compare with.
    return {
        "paper": step / size if size else float("nan"),
        "norm": float(difference.norm() / base.norm()) if size else float("nan"),
        "step": step,
    }


def photos_of(identity: Identity, count: int) -> Tensor:
    """The individual's photo and others of it, ``(count, 3, 128, 128)``: other backgrounds, other things worn."""
    rng = np.random.default_rng(int.from_bytes(identity.order()[8:16], "big"))
    scenes = [concept_scene(rng) for _ in range(count - 1)]
    return torch.cat([concept_photo(identity)[1][None], render([identity] * len(scenes), scenes)])


def measure(identity: Identity, settings: DreamBoothSettings) -> dict[str, dict[str, float]]:
    """Canonical name of each weight -> its scores after tuning on an individual; "" holds the first and the last loss."""
    vae = load_vae()
    with torch.no_grad():
        latents = vae.to_unet(vae.encode(photos_of(identity, PHOTOS))).float()
    unet = TrainingUNet(load_unet())
    base = BaseModel(unet, TrainingText(load_text()), "mini world")
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        concept = train(DreamBooth(DOMAINS[DOMAIN].word), base, Photos(latents), settings, 0)
    changed = full_differences(concept.weights)
    found = {
        name: scores(weight, changed[name].value() if name in changed else torch.zeros_like(weight))
        for name, weight in unet.parameters().items()
    }
    early, late = (float(np.mean(part)) for part in (concept.losses[:20], concept.losses[-20:]))
    return found | {"": {"first loss": early, "last loss": late}}


def kept(identity: Identity, settings: DreamBoothSettings) -> dict[str, dict[str, float]]:
    """The same from its file, or measured now and put there."""
    decides = json.dumps([host.weights_fingerprint("base", "text", "vae"), asdict(settings), PHOTOS], sort_keys=True)
    key = hashlib.sha256(decides.encode() + identity.order()).hexdigest()[:16]
    path = FOLDER / f"{key}.json"
    if not path.exists():
        found = measure(identity, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found), encoding="utf-8")
    known: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    return known


def by_kind(
    networks: Iterable[Mapping[str, Mapping[str, float]]], dimensions: Mapping[str, int]
) -> dict[str, dict[str, np.ndarray]]:
    """Kind -> score -> its mean over that kind's layers in each network; attention also by projection ("cross-attention to_q")."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for network in networks:
        own: dict[str, dict[str, list[float]]] = {}
        for name, values in network.items():
            if not name:
                continue
            kind = kind_of(name, dimensions[name])
            kinds = [kind]
            part = next((part for part in PARTS if f".{part}." in name), None)
            if part and kind.endswith("attention"):
                kinds.append(f"{kind} {part}")
            for of in kinds:
                for score, value in values.items():
                    own.setdefault(of, {}).setdefault(score, []).append(value)
        for of, by_score in own.items():
            for score, one in by_score.items():
                found.setdefault(of, {}).setdefault(score, []).append(one)
    return {
        of: {score: np.array([np.nanmean(one) for one in rows]) for score, rows in by_score.items()}
        for of, by_score in found.items()
    }


def plot(rows: list[tuple[str, float]], path: Path) -> None:
    """Bars of the paper's score, the longest at the top, as PNG."""
    left, width, row = 210, 420, 26
    image = Image.new("RGB", (left + width + 90, 50 + row * len(rows)), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((10, 10), "mean |W - W0| / mean |W0|, by kind of layer", INK, font(16))
    most = max(value for _, value in rows)
    for number, (name, value) in enumerate(rows):
        top = 44 + row * number
        draw.text((left - 8, top + row // 2), name, INK, font(14), "rm")
        attention = name.endswith("attention") or " to_" in name
        draw.rectangle(
            (left, top + 4, left + width * value / most, top + row - 4), "#1f5fa8" if attention else "#c0c0c0"
        )
        draw.text((left + width * value / most + 6, top + row // 2), f"{value:.4f}", GRAY, font(13), "lm")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)


def main() -> int:
    """The command; its exit status is 1 if ``--minutes`` were not enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=8, help="networks that are tuned")
    parser.add_argument("--steps", type=int, default=SETTINGS.steps)
    parser.add_argument("--learning-rate", type=float, default=SETTINGS.learning_rate)
    parser.add_argument("--minutes", type=float, help="begin nothing more after so many; the same command goes on")
    parser.add_argument("--out", type=Path, default=FOLDER / "table1.png")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = replace(SETTINGS, steps=options.steps, learning_rate=options.learning_rate)
    until = float("inf") if options.minutes is None else time.monotonic() + 60 * options.minutes
    networks: list[dict[str, dict[str, float]]] = []
    for identity in Progress(held_out(DOMAIN, "validation", options.identities), desc="tuning"):
        if time.monotonic() > until:
            print(f"{len(networks)} of {options.identities} networks are tuned: the same command goes on.")
            return 1
        networks.append(kept(identity, settings))
    weights = TrainingUNet(load_unet()).parameters()
    found = by_kind(networks, {name: weight.ndim for name, weight in weights.items()})
    order = sorted(found, key=lambda of: -float(found[of]["paper"].mean()))
    rows = []
    for of in order:
        interval = bootstrap(lambda w, of=of: w @ found[of]["paper"] / w.sum(1), len(networks))  # type: ignore[misc]
        norm, step = (float(found[of][score].mean()) for score in ("norm", "step"))
        rows.append(
            (of, interval, f"{norm:.4f}", f"{step:.2e}", f"{step / (settings.steps * settings.learning_rate):.2f}")
        )
    early, late = (float(np.mean([one[""][f"{which} loss"] for one in networks])) for which in ("first", "last"))
    print(
        f"{len(networks)} networks, {settings.steps} steps at {settings.learning_rate:g} on {PHOTOS} photos each:"
        f" loss {early:.4f} -> {late:.4f}\n"
    )
    print(table(("kind of layer", "paper's score", "norm", "mean step", "/ steps x rate"), rows))
    plot([(of, float(found[of]["paper"].mean())) for of in order if of not in (NORMS, BIASES)], options.out)
    print(f"\n{options.out}: the paper's score by kind, without norms and biases")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
