"""Pictures that are sampled in pieces: how much of a latent the UNet is given at once, and features within that bound.

Tiled diffusion, context windows and areas cut a latent behind our wrapper or in front of it, so that a large one fits in
memory. A feature pass over all of it would not fit. So it is thinned to the size of what the UNet is given: of evenly
spread cells one each is kept. Means of cells would hold less noise than the timestep says.

On the mini world (20 evaluations, latents of 2 and 4 times the size it was trained with, bound to the trained size), the
word of a thinned latent is 0.25 and 0.39 of the word's own length from that of the whole one, and moves what the UNet
predicts by 0.23 and 0.36 of the word's effect. The mean over tiles, which costs as many passes as there are tiles: 0.26 and
0.42, 0.27 and 0.44. Means of cells: 0.34 and 0.60, 0.27 and 0.46. The fixed word: 0.43 and 0.56, 0.35 and 0.46.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

logger = logging.getLogger(__name__)

KEY = "e4t"
FUNCTION = "model_function_wrapper"
# What is between our wrapper and the network, and may cut or repeat what it is given.
AROUND_NETWORK = (WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL)
# What says nothing about size but costs something, or would be used up.
LEFT_OUT = ("control", "hooks")

Conds = list[list[dict[str, Any]] | None]
Size = tuple[int, int, int]
"""Rows, height, width of a latent batch."""


class _Seen(Exception):
    """Ends a call as soon as it is known how large a latent the UNet is given."""


def given_size(
    executor: Callable[..., Any], model: Any, conds: Conds, x: Tensor, sigma: Tensor, model_options: dict[str, Any]
) -> Size:
    """How large a latent the UNet is given when ``x`` ``(B, 4, h, w)`` is evaluated; nothing is computed.

    Where something stands in between that may cut it, the evaluation is begun and ended when it reaches the UNet. Of
    several pieces the first one counts.

    Args:
        executor: what evaluates, from our wrapper on (CALC_COND_BATCH).
        model, conds, x, sigma, model_options: what it would be called with.
    """
    whole = (x.shape[0], x.shape[2], x.shape[3])
    if not _may_be_cut(conds, model_options):
        return whole
    seen: list[Size] = []

    def look(_executor: object, latent: Tensor, *_arguments: object, **_options: object) -> Tensor:
        seen.append((latent.shape[0], latent.shape[2], latent.shape[3]))
        raise _Seen

    bare: Conds = [
        group and [{key: value for key, value in cond.items() if key not in LEFT_OUT} for cond in group]
        for group in conds
    ]
    try:
        executor(model, bare, x, sigma, _with_innermost(look, model_options))
    except _Seen:
        pass
    except Exception as error:  # noqa: BLE001 - who cuts may turn ours into any other
        # If it is none of ours, the evaluation that follows will raise it again, in the open.
        logger.debug("E4T: how the latent is cut was asked for and ended with %r.", error)
    return seen[0] if seen else whole


def bounded_features(features: Callable[[Tensor, slice], Tensor], x: Tensor, size: Size) -> Tensor:
    """Features ``(B, width)`` of latents ``(B, 4, h, w)`` by passes of no more than ``size``.

    Args:
        features: of some rows, thinned: ``(b, 4, h', w')`` and which rows they are -> ``(b, width)``.
        x: the latents; all at once and as they are, where they fit.
        size: rows, height and width of a pass.
    """
    rows, small = size[0], thinned(x, size[1] * size[2])
    starts = range(0, x.shape[0], rows)
    parts = [features(small[start : start + rows], slice(start, start + rows)) for start in starts]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def thinned(x: Tensor, cells: int) -> Tensor:
    """Latents ``(B, 4, h, w)`` with at most so many cells each, of the same shape: evenly spread rows and columns of them."""
    height, width = x.shape[2:]
    if height * width <= cells:
        return x
    share = math.sqrt(cells / (height * width))
    return x[:, :, _spread(height, share).to(x.device)][:, :, :, _spread(width, share).to(x.device)]


def _spread(side: int, share: float) -> Tensor:
    """Numbers of evenly spread cells of a side, a share of them but at least one."""
    count = max(1, int(side * share))
    return ((torch.arange(count) + 0.5) * (side / count)).long()


def other_wrappers(transformer_options: Mapping[str, Any], *kinds: str) -> bool:
    """Whether other packs wrap something of these kinds."""
    wrappers = transformer_options.get("wrappers", {})
    return any(held and key != KEY for kind in kinds for key, held in wrappers.get(kind, {}).items())


def _may_be_cut(conds: Conds, model_options: dict[str, Any]) -> bool:
    if "multigpu_clones" in model_options:
        return False
    others = other_wrappers(model_options.get("transformer_options", {}), *AROUND_NETWORK)
    given = [cond for group in conds if group for cond in group]
    return FUNCTION in model_options or others or all("area" in cond for cond in given)


def _with_innermost(look: Callable[..., Any], model_options: dict[str, Any]) -> dict[str, Any]:
    """A copy of the options with one more APPLY_MODEL wrapper, behind all others."""
    options = model_options.get("transformer_options", {})
    wrappers = {kind: dict(held) for kind, held in options.get("wrappers", {}).items()}
    wrappers.setdefault(WrappersMP.APPLY_MODEL, {})[f"{KEY}_look"] = [look]
    return {**model_options, "transformer_options": {**options, "wrappers": wrappers}}
