"""A cheap look at forms of a concept: noise predictions for its photo, beside the exact form's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .compact_concepts import Studio, Tuned
from .compact_forms import EXACT, FORMS, Form, sd15_bytes
from .determinism import predictions

PROBES = 16
KINDS: dict[str, tuple[str, ...]] = {
    "convolutions": ("conv",),
    "cross-attention": ("attn2",),
    "self-attention": ("attn1",),
    "feed-forward": (".ff.",),
    "projections into and out of attention": ("proj_in", "proj_out"),
    "time embedding": ("time_emb",),
}
"""Kinds of layers, by texts in their names; what one of them does is what is missing where it is left out."""


Changes = Callable[[Form], tuple[dict[str, Tensor], Any]]
"""A concept's differences and encoder in a form."""


def probe_rows(studio: Studio, concepts: Sequence[tuple[Tuned, Changes]]) -> list[list[str]]:
    """A row for each form, and for each kind of layer that is left out: the difference as a share of what tuning moved."""
    columns = [_shares(studio, tuned, changes) for tuned, changes in concepts]
    sizes = {form.name: f"{sd15_bytes(form) / 1e6:.2f}" for form in FORMS}
    return [[name, sizes.get(name, ""), *(f"{column[name]:.4f}" for column in columns)] for name in columns[0]]


def _shares(studio: Studio, tuned: Tuned, changes: Changes) -> dict[str, float]:
    untuned = studio.domain.encoder

    def predicted(name: str, differences: Mapping[str, Tensor], encoder: Any) -> Tensor:
        held = studio.held(tuned, differences, encoder, name)
        return predictions(studio.drawer.base, held, tuned.latent, PROBES)

    exact, encoder = changes(EXACT)
    reference = predicted("exact", exact, encoder)
    moved = _rms(reference - predicted("untuned", {}, untuned))
    found = {}
    for form in FORMS:
        if form != EXACT and not form.static and not form.unet_rank:
            found[form.name] = predicted(form.name, *changes(form))
    found["without the encoder's"] = predicted("without the encoder's", exact, untuned)
    found["without vectors"] = predicted("without vectors", _without(exact, lambda _, v: v.ndim < 2), encoder)
    for kind, texts in KINDS.items():
        rest = _without(exact, lambda name, _, texts=texts: any(text in name for text in texts))
        found[f"without {kind}"] = predicted(f"without {kind}", rest, encoder)
    return {name: _rms(made - reference) / moved for name, made in found.items()}


def _without(differences: Mapping[str, Tensor], left_out: Any) -> dict[str, Tensor]:
    return {name: value for name, value in differences.items() if not left_out(name, value)}


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
