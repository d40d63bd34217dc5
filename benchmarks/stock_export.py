"""``python -m benchmarks.stock_export``: how small a stock LoRA of a concept may be, and what it loses.

Individuals' concept photos are learned by the node. Each form of the node "Export E4T Concept" is then made of every concept,
and compared with it as the node does: noise predictions on eight noise levels, the word fixed in both. Given are means.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from statistics import fmean

import torch

from commands.progress import Progress

from . import host
from .arms import WEIGHTS, Drawer, load_subjects, personalize
from .report import table

ERRORS, RANKS = (0.1, 0.2, 0.3, 0.5), (8, 32)


@dataclass(frozen=True)
class Form:
    """One way to make a LoRA; arguments of ``make_lora``."""

    name: str
    exact: bool = False
    error: float = 1.0
    rank: int = 0
    vectors: bool = True


FORMS = (
    Form("exact", exact=True),
    *(Form(f"error {error:g}", error=error) for error in ERRORS),
    *(Form(f"rank {rank}", rank=rank) for rank in RANKS),
    Form(f"error {ERRORS[1]:g}, no norms and biases", error=ERRORS[1], vectors=False),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("held-out", "validation"), default="validation")
    parser.add_argument("--domain", choices=tuple(WEIGHTS), default="face")
    parser.add_argument("--identities", type=int, default=8)
    options = parser.parse_args()
    drawer = Drawer(1, {}, options.domain)
    make_lora = host.pack("nodes.host.exporting.lora").make_lora
    lost_effect = host.pack("nodes.host.exporting.lost_effect").lost_effect
    held_concepts = host.pack("nodes.host.sampling.patched_model").held_concepts
    found: dict[str, list[tuple[float, float, float]]] = {form.name: [] for form in FORMS}
    refinement = []
    for person in Progress(load_subjects(options.split, options.identities, options.domain), desc="concepts"):
        tuned = personalize(drawer.base, drawer.domain(options.domain), person.photo, None, drawer.settings())
        (held,) = held_concepts(tuned.model)
        for form in FORMS:
            with torch.inference_mode():
                lora = make_lora(held.concept, drawer.base.model, form.exact, form.error, form.rank, form.vectors)
                lost = lost_effect(drawer.base.model, drawer.base.clip, held.concept, lora.tensors)
            found[form.name].append((lora.size / 1e6, lora.error, lost.weights))
        refinement.append(lost.refinement or 0.0)
    rows = [
        (name, f"{fmean(v[0] for v in values):.1f}", *(f"{100 * fmean(v[i] for v in values):.1f} %" for i in (1, 2)))
        for name, values in found.items()
    ]
    print(table((f"{len(refinement)} {options.split} {options.domain}s", "MB", "weights off by", "effect lost"), rows))
    print(f"Refining the word at every step moves predictions by another {100 * fmean(refinement):.1f} %.")


if __name__ == "__main__":
    main()
