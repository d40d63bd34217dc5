"""Contexts of their own for cross-attention layers while a MODEL samples: ONE patch of attn2, behind all others.

What concepts say of single layers is known before the network runs: for every conditioning in which such a word stands, what
each layer reads in its place. Rows that go into cross-attention and equal that conditioning are replaced, whoever put them
there and in whatever batch; all others, the unconditional half among them, stay the very tensors that they are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ....e4t_core.canonical_names import canonical_names
from ....e4t_core.layer_contexts import KEY, cross_attentions
from .regions import Region, factor_of

BLOCKS = {"input_blocks": "input", "output_blocks": "output"}

Place = tuple[tuple[str, int], int]
"""What ComfyUI calls a layer: its block, and which of the block's transformers it is in."""


def layer_places(parameters: Iterable[str]) -> dict[Place, str]:
    """Canonical names of a UNet's cross-attention layers by what ComfyUI calls them (comfy/ldm/modules/attention.py).

    Args:
        parameters: native names of its weights, without prefix.
    """
    native = {canonical: name for name, canonical in canonical_names(parameters).items()}
    places = {}
    for layer in cross_attentions(native):
        parts = native[f"{layer}{KEY}.weight"].split(".")
        block = (BLOCKS[parts[0]], int(parts[1])) if parts[0] in BLOCKS else ("middle", 0)
        places[block, int(parts[parts.index("transformer_blocks") + 1])] = layer
    return places


@dataclass(frozen=True, eq=False)
class Layered:
    """What layers read in place of one conditioning.

    Attributes:
        given: the conditioning, as cross-attention is given it, ``(r, T, D)``.
        keys, values: by layer, ``(r', T, D)``: of several latents, rows take turns.
        region: of another node that gives it to cross-attention, if one does.
    """

    given: Tensor
    keys: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    region: Region | None = None


@dataclass(frozen=True)
class _Match:
    """A row that is a conditioning's: which, which of its latents, how many times in a row, and by what it was multiplied."""

    row: int
    layered: Layered
    latent: int
    times: int
    factor: float


@dataclass(eq=False)
class LayerPatch:
    """All that one evaluation gives to layers; make a new one per evaluation.

    Attributes:
        places: see :func:`layer_places`.
        latents: of the evaluation.
    """

    places: Mapping[Place, str]
    latents: int
    layered: list[Layered] = field(default_factory=list)
    _read: list[tuple[Tensor, list[_Match]]] = field(default_factory=list)

    def options(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """A copy of a MODEL's options for the evaluation, with the patch; themselves, if no layer reads its own."""
        if not self.layered:
            return model_options
        inner = dict(model_options.get("transformer_options", {}))
        patches = dict(inner.get("patches", {}))
        patches["attn2_patch"] = [*patches.get("attn2_patch", []), functools.partial(self._patch)]
        return {**model_options, "transformer_options": {**inner, "patches": patches}}

    def _patch(self, n: Tensor, context: Tensor, value: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, ...]:
        layer = self.places.get((tuple(options.get("block", ())), options.get("block_index", 0)))
        if layer is None:
            return n, context, value
        keys = self._replaced(context, [(m, m.layered.keys.get(layer)) for m in self._matches(context)])
        values = self._replaced(value, [(m, m.layered.values.get(layer)) for m in self._matches(value)])
        return n, keys, values

    def _replaced(self, given: Tensor, own: list[tuple[_Match, Tensor | None]]) -> Tensor:
        made = None
        for match, context in own:
            if context is None:
                continue
            made = given.clone() if made is None else made
            row = context[match.latent % context.shape[0]].to(given).repeat(match.times, 1)
            made[match.row] = row if match.factor == 1.0 else row * match.factor
        return given if made is None else made

    def _matches(self, given: Tensor) -> list[_Match]:
        """Its rows that are conditionings'; one tensor goes into all layers and is compared once."""
        for tensor, matches in self._read:
            if tensor is given:
                return matches
        found = []
        for row in range(given.shape[0] if given.ndim == 3 else 0):
            latent = row % self.latents
            for layered in self.layered:
                known = layered.given
                if given.shape[1] % known.shape[1] or given.shape[2] != known.shape[2]:
                    continue
                times = given.shape[1] // known.shape[1]
                factor = factor_of(given[row], known[latent % known.shape[0]].to(given).repeat(times, 1))
                if factor is not None:
                    found.append(_Match(row, layered, latent, times, factor))
                    if layered.region is not None:
                        layered.region.followed = True
                    break
        # The tensor is kept, so that it stays what it was compared as; other nodes may make a new one in every layer.
        self._read = [*self._read[-1:], (given, found)]
        return found
