"""A mix of concepts: the weighted average of their words, of what predicts them, and of their weight changes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention_changes import AttentionChange, GatedEdit, LayerWords
from .concept import Concept, WordPredictor
from .fingerprint import fingerprint
from .weight_changes import Full, LowRank, Scaled, WeightChange, own_differences

MOST = 4
"""Concepts in a mix."""


class MixError(ValueError):
    """Concepts that cannot be mixed; the message is one sentence that says why."""


@dataclass(frozen=True, eq=False)
class MixedPredictor:
    """The weighted average of what several predictors say; the core's ``WordPredictor``.

    Attributes:
        parts: the predictors.
        shares: theirs, which sum to 1.
        network: all of their networks.
    """

    parts: tuple[WordPredictor, ...]
    shares: tuple[float, ...]
    network: nn.ModuleList

    @classmethod
    def of(cls, parts: Sequence[WordPredictor], shares: Sequence[float]) -> MixedPredictor:
        """A mix; mixes among the parts are resolved into theirs."""
        flat: list[tuple[WordPredictor, float]] = []
        for part, share in zip(parts, shares, strict=True):
            inner = part.parts if isinstance(part, MixedPredictor) else (part,)
            inner_shares = part.shares if isinstance(part, MixedPredictor) else (1.0,)
            flat += [(one, share * inner_share) for one, inner_share in zip(inner, inner_shares, strict=True)]
        networks = nn.ModuleList(part.network for part, _ in flat)
        return cls(tuple(part for part, _ in flat), tuple(share for _, share in flat), networks)

    @property
    def feature_width(self) -> int:
        """The predictor's."""
        return self.parts[0].feature_width

    def word(self, unet_features: Tensor) -> Tensor:
        """Word embeddings ``(B, D)`` for UNet features ``(B, feature_width)``."""
        return _average([part.word(unet_features) for part in self.parts], self.shares)


@torch.no_grad()
def mix(concepts: Sequence[Concept], weights: Sequence[float], trigger: str) -> Concept:
    """The weighted average of concepts of one method, one domain and one base model.

    Args:
        concepts: one to :data:`MOST`; those of weight 0 are left out.
        weights: of each, 0 or more; only their ratio counts.
        trigger: what the mix is called. How it is drawn is as the first of them is.

    Returns:
        The mix; where only one concept has a weight, that concept itself under the trigger.

    Raises:
        MixError: there is nothing to mix, or they do not belong together.
    """
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
        raise MixError(
            f"The weights {', '.join(f'{w:g}' for w in weights)} mix nothing: give 0 or more, and one above 0."
        )
    parts = [(concept, weight) for concept, weight in zip(concepts, weights, strict=True) if weight > 0]
    if len(parts) == 1:
        return dataclasses.replace(parts[0][0], trigger=trigger)
    chosen = [concept for concept, _ in parts]
    shares = [weight / sum(weight for _, weight in parts) for _, weight in parts]
    _check_alike(chosen)
    first = chosen[0]
    known = [concept.predictor for concept in chosen if concept.predictor is not None]
    described = json.dumps(["mix", *shares])
    return Concept(
        trigger=trigger,
        method=first.method,
        fingerprint=fingerprint({}, described, *(concept.fingerprint for concept in chosen)),
        base_fingerprint=first.base_fingerprint,
        embedding=_average([concept.embedding for concept in chosen], shares),
        weights=tuple(_mixed_changes(chosen, shares)),
        settings=first.settings,
        seed=first.seed,
        predictor=MixedPredictor.of(known, shares) if known else None,
        attention=_mixed_words(chosen, shares),
        word=first.word,
        start=first.start,
        prediction=first.prediction,
        base_name=first.base_name,
        domain_name=first.domain_name,
        domain_fingerprint=first.domain_fingerprint,
        sampling=first.sampling,
        notes=_notes(chosen),
    )


def _check_alike(concepts: Sequence[Concept]) -> None:
    first = concepts[0]
    for other in concepts[1:]:
        names = f"{first.trigger!r} and {other.trigger!r} cannot be mixed"
        if other.to_learn or first.to_learn:
            recipe = first if first.to_learn else other
            raise MixError(
                f"{names}: {recipe.trigger!r} is a recipe, so wire in the concept that Apply E4T Concept gives for it."
            )
        if other.method != first.method:
            raise MixError(f"{names}: one was learned by {first.method}, the other by {other.method}.")
        if other.domain_fingerprint != first.domain_fingerprint:
            raise MixError(
                f"{names}: one belongs to the domain file {first.domain_name!r}, the other to {other.domain_name!r} (or to another"
                " version of it)."
            )
        if other.embedding.shape != first.embedding.shape:
            shapes = f"{tuple(first.embedding.shape)} and {tuple(other.embedding.shape)}"
            raise MixError(f"{names}: their words have the shapes {shapes} (tokens, width).")
        if other.prediction and first.prediction and other.prediction != first.prediction:
            raise MixError(f"{names}: their base models predict {first.prediction} and {other.prediction}.")
        if (other.predictor is None) != (first.predictor is None):
            raise MixError(
                f"{names}: the word of only one of them is refined; wire in both at a word strength above 0."
            )
        if isinstance(other.attention, GatedEdit) or isinstance(first.attention, GatedEdit):
            raise MixError(
                f"{names}: an edit of layers (Perfusion) acts on one word, so two have no average; write both words into a prompt."
            )
        if (other.attention and other.attention.layers) != (first.attention and first.attention.layers):
            raise MixError(
                f"{names}: their words are not for the same layers; wire in both at a word strength above 0, learned on base"
                " models of one family."
            )
        mine, its = ({change.name: change.shape for change in concept.weights} for concept in (first, other))
        wrong = next((n for n in mine.keys() & its.keys() if mine[n] != its[n]), None)
        if wrong:
            raise MixError(f"{names}: they change {wrong} of base models of different shapes.")


def _mixed_changes(concepts: Sequence[Concept], shares: Sequence[float]) -> Iterator[WeightChange]:
    yield from (change for change in concepts[0].weights if isinstance(change, Scaled))
    kept = [own_differences(concept.weights) for concept in concepts]
    for name in dict.fromkeys(name for differences in kept for name in differences):
        holding = [(part[name], share) for part, share in zip(kept, shares, strict=True) if name in part]
        thin = [(change, share) for change, share in holding if isinstance(change, LowRank)]
        if len(thin) == len(holding) and sum(change.rank for change, _ in thin) <= _thinnest(thin[0][0]):
            # Side by side, the factors make the sum of their products.
            up = torch.cat([share * change.up for change, share in thin], dim=1)
            yield LowRank(name, up, torch.cat([change.down for change, _ in thin]), thin[0][0].shape)
        else:
            yield Full.of(name, _average([change.value() for change, _ in holding], [share for _, share in holding]))


def _thinnest(change: LowRank) -> int:
    """The rank from which on factors are no smaller than half of the matrix."""
    rows, columns = len(change.up), change.down.shape[1]
    return rows * columns // (2 * (rows + columns))


def _mixed_words(concepts: Sequence[Concept], shares: Sequence[float]) -> AttentionChange | None:
    changes = [concept.attention for concept in concepts if isinstance(concept.attention, LayerWords)]
    if not changes:
        return None
    return LayerWords(changes[0].layers, _average([change.embeddings for change in changes], shares))


def _notes(concepts: Sequence[Concept]) -> tuple[str, ...]:
    if len({concept.base_fingerprint for concept in concepts}) > 1:
        return ("The mixed concepts were learned on different base models of one family: the mix may be less alike.",)
    return ()


def _average(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    return torch.stack([share * value for value, share in zip(values, shares, strict=True)]).sum(dim=0)
