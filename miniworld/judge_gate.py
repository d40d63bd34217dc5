"""The gate of a judge: how well it reads held-out pictures, as drawn and as the VAE gives them back.

At least 0.97 of each attribute's visible occurrences on drawn pictures and 0.93 on reconstructions; an area of at least
0.95 under the ROC curve of the identity net on hard pairs (the same individual, or its twin, in another scene; the twin
differs in one named attribute, in the geometry or in the marks, each as often). Eye color and marks are the smallest
things in a picture and are listed apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from e4t_core.files.checked_file import write_tensors
from e4t_core.files.file_errors import FileKind

from .attributes import DOMAINS, Identity, Scene, identities_of, random_scene
from .autoencoder import Autoencoder
from .judge import Judge
from .judge_pairs import PICTURES_EACH, in_two_scenes, kinds, reconstruct, twins_of_kind
from .renderer import render
from .visibility import BATCH, attributes, differs, true_value, visible

# By the names that they have in a judge's metadata.
LIMITS = {
    "drawn, lowest attribute (at least 0.97)": 0.97,
    "decoded, lowest attribute (at least 0.93)": 0.93,
    "identity AUC on hard pairs, drawn (at least 0.95)": 0.95,
    "identity AUC on hard pairs, decoded (at least 0.95)": 0.95,
}
COUNTS = {"face": 256, "cat": 96}
GROUPS = 192
ALWAYS_VISIBLE = ("style", "background", "zoom")
SEED = 17


@dataclass(frozen=True)
class GatePictures:
    """Held-out pictures and, per attribute, whether it can be seen: everything that does not depend on a judge."""

    drawn: Tensor
    decoded: Tensor
    seen: dict[str, Tensor]
    contents: list[tuple[Identity, Scene]]
    twins_drawn: Tensor
    twins_decoded: Tensor
    told_apart: Tensor


def _contents() -> list[tuple[Identity, Scene]]:
    rng = np.random.default_rng(SEED)
    return [
        (identity, random_scene(rng))
        for domain, count in COUNTS.items()
        for identity in identities_of(domain, "held-out", count)
    ]


def _draw(contents: Sequence[tuple[Identity, Scene]]) -> Tensor:
    parts = [contents[i : i + BATCH] for i in range(0, len(contents), BATCH)]
    return torch.cat([render([i for i, _ in part], [s for _, s in part]) for part in parts])


def classified(domain: str) -> list[str]:
    """The questions that are gated for a domain."""
    return [name for name in attributes(domain) if name.removeprefix(f"{domain} ") not in DOMAINS[domain].geometry]


def gate_pictures(folder: Path, vae: Autoencoder) -> GatePictures:
    """Drawn once and kept in ``folder``, because finding out what is visible takes a drawing per attribute."""
    path, contents = folder / "gate.safetensors", _contents()
    if not path.exists():
        rng = np.random.default_rng(SEED + 1)
        shares = [d.share for d in DOMAINS.values()]
        groups = []
        for k in range(GROUPS):  # all kinds of twins alike
            domain = str(rng.choice(list(DOMAINS), p=shares))
            groups.append(in_two_scenes(rng, *twins_of_kind(rng, domain, "held-out", k % kinds(domain))))
        twins = _draw([content for group in groups for content in zip(*group, strict=True)])
        pairs = twins.view(GROUPS, 2, 2, *twins.shape[1:])
        told = differs(pairs[:, :, 0].flatten(0, 1), pairs[:, :, 1].flatten(0, 1)).view(GROUPS, 2).all(1)
        drawn = _draw(contents)
        state = {"drawn": drawn, "decoded": reconstruct(vae, drawn), "told": told}
        state |= {"twins_drawn": twins, "twins_decoded": reconstruct(vae, twins)}
        for domain in DOMAINS:
            own = [c for c in contents if c[0].domain == domain]
            asked = [name for name in classified(domain) if name not in ALWAYS_VISIBLE]
            found = visible([i for i, _ in own], [s for _, s in own], asked)
            state |= {f"seen {domain}:{name}": found[:, k] for k, name in enumerate(asked)}
        state = {k: (v * 255).round().byte() if v.is_floating_point() else v for k, v in state.items()}
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(path, state, {}, FileKind("Gate's file"))
    state = load_file(path)
    seen = {k.removeprefix("seen "): v for k, v in state.items() if k.startswith("seen ")}
    pictures = {k: state[k].float() / 255 for k in ("drawn", "decoded", "twins_drawn", "twins_decoded")}
    return GatePictures(**pictures, seen=seen, contents=contents, told_apart=state["told"])


def accuracies(judge: Judge, pictures: Tensor, gate: GatePictures) -> dict[str, float]:
    """Share of right answers where the attribute can be seen; edits over both domains."""
    reading = judge.read(pictures)
    right: dict[str, list[Tensor]] = {}
    for domain in DOMAINS:
        rows = [k for k, (identity, _) in enumerate(gate.contents) if identity.domain == domain]
        for name in classified(domain):
            truth = torch.tensor([true_value(*gate.contents[k], name) for k in rows])
            correct = reading.answer(name)[rows] == truth
            seen = gate.seen.get(f"{domain}:{name}")
            right.setdefault(name, []).append(correct if seen is None else correct[seen])
    return {name: float(torch.cat(parts).float().mean()) for name, parts in right.items()}


def area_under_curve(same: Tensor, different: Tensor) -> float:
    """How often a same-pair's score is above a different-pair's (ties count half)."""
    above = (same[:, None] > different[None]).float().mean()
    return float(above + 0.5 * (same[:, None] == different[None]).float().mean())


def identity_area(judge: Judge, twins: Tensor, told_apart: Tensor) -> float:
    """AUC over hard pairs in different scenes: (A1, A2) and (B1, B2) against (A1, B2) and (B1, A2)."""
    a1, b1, a2, b2 = judge.read(twins).identity.unflatten(0, (-1, PICTURES_EACH)).unbind(1)
    same = torch.cat([(a1 * a2).sum(1), (b1 * b2).sum(1)])
    different = torch.cat([(a1 * b2).sum(1)[told_apart], (b1 * a2).sum(1)[told_apart]])
    return area_under_curve(same, different)


def is_small(attribute: str) -> bool:
    """Eye color and marks: listed apart from the gate."""
    return "eye colour" in attribute or " mark " in attribute


def measure(judge: Judge, gate: GatePictures) -> dict[str, float]:
    """All figures: those that ``LIMITS`` gates, then what every attribute adds to them."""
    drawn = accuracies(judge, gate.drawn, gate)
    decoded = accuracies(judge, gate.decoded, gate)
    large = [name for name in drawn if not is_small(name)]
    gated = (
        min(drawn[name] for name in large),
        min(decoded[name] for name in large),
        identity_area(judge, gate.twins_drawn, gate.told_apart),
        identity_area(judge, gate.twins_decoded, gate.told_apart),
    )
    figures = dict(zip(LIMITS, gated, strict=True))
    figures |= {f"drawn {name}": value for name, value in drawn.items()}
    figures |= {f"decoded {name}": value for name, value in decoded.items()}
    return {name: round(value, 4) for name, value in figures.items()}


def met(figures: dict[str, float]) -> bool:
    """Whether a judge may be used: the figures that are gated reach their limits."""
    return all(figures[name] >= least for name, least in LIMITS.items())
