"""Prompts that other nodes draw in regions of their own (attention couple): found where they are kept, and followed.

Such a node keeps further contexts beside the conditioning, in a hook on it or in a patch on the MODEL, and gives them to
cross-attention itself. They are looked for there (nothing is changed), and taken over by a patch of ours behind all others:
what goes into cross-attention and equals such a context is replaced by the one with this evaluation's words.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.hooks
import torch
from torch import Tensor, nn

from ..prompt.encoded_prompt import MARK, EncodedPrompt, marks_of
from ..prompt.prompt_memory import PromptMemory
from ..prompt.recognition import Recipe, recognize

# How far and how long other packs' objects are looked through.
DEPTH, OBJECTS = 7, 5000
PATCHES = ("attn2_patch", "attn2")
SIMPLE = (str, bytes, int, float, bool, type(None), type, types.ModuleType, nn.Module)


@dataclass(eq=False)
class Region:
    """One further context.

    Attributes:
        recipe: how it is made of prompts.
        context: it with this evaluation's words, ``(B, T, D)`` or ``(1, T, D)``; None: none of them is refined.
        followed: whether cross-attention was given it, so that it could be replaced; None before that is known.
    """

    recipe: Recipe
    context: Tensor | None = None
    followed: bool | None = None


@dataclass(eq=False)
class Regions:
    """The regions of one sampling run, in the order in which they are found."""

    found: list[Region] = field(default_factory=list)

    def options(self, model_options: dict[str, Any], latents: int) -> dict[str, Any]:
        """A copy of a MODEL's options for one evaluation of so many latents, with the patch that follows regions."""
        if not any(region.context is not None for region in self.found):
            return model_options
        inner = dict(model_options.get("transformer_options", {}))
        patches = dict(inner.get("patches", {}))
        patches["attn2_patch"] = [*patches.get("attn2_patch", []), functools.partial(self._patch, latents)]
        return {**model_options, "transformer_options": {**inner, "patches": patches}}

    def seen(self) -> None:
        """An evaluation has ended: what cross-attention was not given is not followed."""
        for region in self.found:
            region.followed = bool(region.followed)

    def _patch(self, latents: int, n: Tensor, context: Tensor, value: Tensor, _options: Mapping[str, Any]) -> Any:
        changed = self._replaced(context, latents)
        return n, changed, changed if value is context else self._replaced(value, latents)

    def _replaced(self, given: Tensor, latents: int) -> Tensor:
        """``given`` ``(R, T, D)`` with every row that is a region's; of several latents, they take turns."""
        made = None
        for region in self.found:
            if region.context is None:
                continue
            for static, fresh in _forms(region.recipe.tensor, region.context):
                if given.ndim != 3 or given.shape[1] % static.shape[1] or given.shape[2] != static.shape[2]:
                    continue
                times = given.shape[1] // static.shape[1]
                old = static.to(given).repeat(1, times, 1)
                for row in range(given.shape[0]):
                    factor = factor_of(given[row], old[row % latents % old.shape[0]])
                    if factor is not None:
                        made = given.clone() if made is None else made
                        new = fresh[row % latents % fresh.shape[0]].to(given).repeat(times, 1)
                        made[row] = new if factor == 1.0 else new * factor
                        region.followed = True
        return given if made is None else made


def _forms(static: Tensor, fresh: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A context as a whole; and its even and odd rows, which some packs take for keys and values."""
    yield static, fresh
    if static.shape[1] % 2 == 0:
        for first in (0, 1):
            yield static[:, first::2], fresh[:, first::2]


def factor_of(row: Tensor, old: Tensor) -> float | None:
    """1 or the strength that ``old`` ``(T, D)`` was multiplied by to give ``row``; None if it was not."""
    if torch.equal(row, old):
        return 1.0
    start = float(old[0] @ old[0])
    factor = round(float(row[0] @ old[0]) / start, 3) if start else 0.0
    return factor if factor and torch.equal(row, old * factor) else None


def find_regions(
    conds: Sequence[Sequence[dict[str, Any]] | None], model_options: Mapping[str, Any], memory: PromptMemory
) -> Regions:
    """All contexts with a concept that hooks on these conditionings, or patches of this MODEL, keep beside them."""
    held: list[Any] = [
        hook
        for group in conds
        for cond in group or ()
        if isinstance(cond.get("hooks"), comfy.hooks.HookGroup)
        for hook in cond["hooks"].hooks
        if isinstance(hook, comfy.hooks.TransformerOptionsHook)
    ]
    options = model_options.get("transformer_options", {})
    held += [options.get(kind, {}).get(name) for kind in ("patches", "patches_replace") for name in PATCHES]
    tensors, marks = _look_through(held)
    regions = Regions()
    for tensor in tensors:
        recipe = recognize(tensor, marks, memory)
        if recipe is None or not recipe.prompts():
            continue
        same = [region for region in regions.found if region.recipe.tensor.shape == tensor.shape]
        if not any(torch.equal(region.recipe.tensor.cpu(), tensor.cpu()) for region in same):
            regions.found.append(Region(recipe))
    base = [cond["model_conds"].get("c_crossattn") for group in conds for cond in group or () if "model_conds" in cond]
    given = [attention.cond for attention in base if torch.is_tensor(getattr(attention, "cond", None))]
    regions.found = [region for region in regions.found if not _is_given(region.recipe.tensor, given)]
    return regions


def _is_given(tensor: Tensor, given: Sequence[Tensor]) -> bool:
    """Whether a tensor is a conditioning of the sampler's: such a node often keeps that one, too."""
    return any(other.shape == tensor.shape and torch.equal(other.cpu(), tensor.cpu()) for other in given)


def _look_through(held: Sequence[Any]) -> tuple[list[Tensor], list[EncodedPrompt]]:
    """Tensors that may be contexts, and the prompts that are named beside them."""
    tensors: list[Tensor] = []
    marks: list[EncodedPrompt] = []
    seen: set[int] = set()
    waiting: list[tuple[Any, int]] = [(item, 0) for item in held]
    while waiting and len(seen) < OBJECTS:
        item, depth = waiting.pop(0)
        if isinstance(item, SIMPLE) or id(item) in seen:
            continue
        seen.add(id(item))
        if torch.is_tensor(item):
            if item.ndim == 3 and item.is_floating_point():
                tensors.append(item)
        elif depth < DEPTH:
            if isinstance(item, Mapping):
                marks += marks_of(item)
            waiting += [(inner, depth + 1) for inner in _inside(item)]
    return tensors, marks


def _inside(item: Any) -> list[Any]:
    if isinstance(item, Mapping):
        return [value for key, value in item.items() if key != MARK and key != "additional_models"]
    if isinstance(item, (list, tuple, set, frozenset)):
        return list(item)
    if isinstance(item, functools.partial):
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, types.MethodType):
        return [item.__self__, item.__func__]
    if isinstance(item, types.FunctionType):
        cells = [cell for cell in item.__closure__ or ()]
        return [cell.cell_contents for cell in cells if _filled(cell)]
    if type(item).__module__.split(".")[0] in ("comfy", "torch"):
        return list(vars(item).values()) if isinstance(item, comfy.hooks.Hook) else []
    return list(vars(item).values()) if hasattr(item, "__dict__") else []


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
