"""The feature pass and the sampler's own pass over the empty prompt are one: its down half is computed once.

The word is predicted from the network's down half and middle under the empty prompt. Where a prompt of the evaluation is the
empty one (usually the negative), the sampler's own call would compute just that again. So the feature pass takes that
prompt's context and keeps what every block gave, and in the sampler's call, which goes through as it is, each of these
blocks computes the other prompts' rows only. What follows them (ControlNet's residuals, the up half and patches of it) sees
all rows.

Two calls of the network, one with the empty prompt and one with the rest, would cost as many floating-point operations. But on
a card that waits for its kernels to be started two batches of one take twice as long as one batch of two. Here the kernels are
those of a separate feature pass, so that sharing is not slower than that on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import TimestepBlock, UNetModel
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from .pieces import AROUND_NETWORK, FUNCTION, KEY, Conds, other_wrappers

# Distance of two contexts of the empty prompt, relative to their length, where one text encoder computes in half precision.
# With the mini world's: 0.0008 in float16, 0.007 in bfloat16; from there to the prompt "a" it is 0.08.
ROUNDING = 1e-2
# Patches that act behind the middle block.
LATER = {"middle_block_after_patch", "output_block_patch"}

Prompt = tuple[int, Hashable]
"""A conditioning of an evaluation: its group, and its uuid."""


@dataclass(frozen=True)
class EmptyPrompt:
    """A context ``(1, L, D)`` of an evaluation that is the empty prompt's, and the conditionings that have it."""

    context: Tensor
    prompts: frozenset[Prompt]


class Contexts:
    """Contexts that were compared, by identity: a tensor is read by the host once per run, not once per evaluation.

    Args:
        limit: tensors that are remembered; some nodes cut new ones at every evaluation.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        # With the tensor itself, so that its id cannot be given to another one.
        self._read: dict[int, tuple[Tensor, Tensor]] = {}

    def equal(self, a: Tensor, b: Tensor) -> bool:
        """Whether two contexts are the same, bit for bit, on whatever devices."""
        alike = a.shape == b.shape and a.dtype == b.dtype
        return a is b or (alike and torch.equal(self._on_host(a), self._on_host(b)))

    def near(self, a: Tensor, b: Tensor) -> bool:
        """Whether they differ by no more than rounding."""
        if a.shape != b.shape:
            return False
        first, second = self._on_host(a).float(), self._on_host(b).float()
        return self.equal(a, b) or float((first - second).norm()) <= ROUNDING * float(second.norm())

    def find_empty(
        self, conds: Conds, empty: Tensor, may_be_empty: Callable[[dict[str, Any]], bool]
    ) -> EmptyPrompt | None:
        """The conditionings that are the empty prompt over all of the latent, with a text encoder that gives ``empty``.

        Args:
            may_be_empty: whether a conditioning is one prompt without a word, as far as anybody knows.
        """
        found: list[tuple[Tensor, Prompt]] = []
        for group, members in enumerate(conds):
            uuids = [cond.get("uuid") for cond in members or ()]
            for cond in members or ():
                context = getattr(cond.get("model_conds", {}).get("c_crossattn"), "cond", None)
                alone = uuids.count(cond.get("uuid")) == 1 and "area" not in cond and cond.get("hooks") is None
                if alone and torch.is_tensor(context) and may_be_empty(cond) and self.near(context, empty):
                    found.append((context, (group, cond.get("uuid"))))
        if not found:
            return None
        first = found[0][0]
        return EmptyPrompt(first, frozenset(prompt for context, prompt in found if self.equal(context, first)))

    def _on_host(self, context: Tensor) -> Tensor:
        if id(context) not in self._read:
            if len(self._read) >= self._limit:
                self._read.clear()
            self._read[id(context)] = (context, context.detach().cpu())
        return self._read[id(context)][1]


def may_share(model: Any, model_options: Mapping[str, Any]) -> bool:
    """Whether the network of this evaluation is ComfyUI's own and is given what the sampler evaluates, as it is."""
    network, patcher = model.diffusion_model, getattr(model, "current_patcher", None)
    return not (
        "multigpu_clones" in model_options
        or FUNCTION in model_options
        or other_wrappers(model_options.get("transformer_options", {}), *AROUND_NETWORK, WrappersMP.DIFFUSION_MODEL)
        or not _is_stock(network)
        or (patcher is not None and patcher.injections)
    )


def _is_stock(network: object) -> bool:
    """Whether a network is ComfyUI's UNet and calls its blocks as that does."""
    # ComfyUI leaves a module's own bound method behind where it has taken a patch away again.
    placed = {name: vars(network)[name] for name in ("forward", "_forward") if name in vars(network)}
    own = all(
        getattr(method, "__self__", None) is network and getattr(method, "__func__", None) is getattr(UNetModel, name)
        for name, method in placed.items()
    )
    return type(network) is UNetModel and own


@dataclass(frozen=True, eq=False)
class KnownHalf:
    """What the feature pass of one evaluation has left: it is the DIFFUSION_MODEL wrapper of that evaluation.

    Attributes:
        network: whose blocks they are.
        size: of its input ``(B, 4, h, w)``.
        outputs: of conv_in, of every down block and of the middle block, ``(B, C, h, w)`` each.
        prompts: the conditionings whose rows these are.
    """

    network: UNetModel
    size: torch.Size
    outputs: Sequence[Tensor]
    prompts: frozenset[Prompt]

    def options(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """A copy of a MODEL's options for this evaluation."""
        inner = model_options.get("transformer_options", {})
        wrappers = dict(inner.get("wrappers", {}))
        wrappers[WrappersMP.DIFFUSION_MODEL] = {**wrappers.get(WrappersMP.DIFFUSION_MODEL, {}), KEY: [self]}
        return {**model_options, "transformer_options": {**inner, "wrappers": wrappers}}

    def __call__(
        self,
        executor: Callable[..., Tensor],
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        y: Tensor | None = None,
        control: Mapping[str, Any] | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> Tensor:
        """One call of the network, with the rows ``(n * B, ...)`` of n conditionings."""
        options = {} if transformer_options is None else transformer_options
        known = self._known(executor, x, control, options)
        if not any(known) or context is None or y is not None or others:
            return executor(x, timesteps, context, y, control, options, **others)
        with self._standing_in(known, context, options):
            return executor(x, timesteps, context, y, control, options)

    def _known(
        self, executor: Any, x: Tensor, control: Mapping[str, Any] | None, options: Mapping[str, Any]
    ) -> list[bool]:
        """For each conditioning of a call, whether its rows are known; for none, if something acts on the down half."""
        groups, uuids = options.get("cond_or_uncond", []), options.get("uuids", [])
        rows = torch.Size([len(groups) * self.size[0], *self.size[1:]])
        acts = (
            getattr(executor, "class_obj", None) is not self.network
            or x.shape != rows
            or (control is not None and any(residual is not None for residual in control.get("input") or ()))
            or any(patches and name not in LATER for name, patches in options.get("patches", {}).items())
            or any(options.get("patches_replace", {}).values())
            or "optimized_attention_override" in options
            or other_wrappers(options, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
        )
        return [] if acts else [prompt in self.prompts for prompt in zip(groups, uuids, strict=True)]

    @contextmanager
    def _standing_in(self, known: Sequence[bool], context: Tensor, options: Mapping[str, Any]) -> Iterator[None]:
        """Within it, the network's down blocks and middle compute only rows that are not known."""
        network, names = vars(self.network), ("input_blocks", "middle_block")
        blocks = [*self.network.input_blocks, self.network.middle_block]
        layers = [
            [_OtherRows(block, output, known, context, options)]
            for block, output in zip((block for block in blocks if block is not None), self.outputs, strict=True)
        ]
        *down, middle = layers if blocks[-1] is not None else [*layers, None]
        # An attribute of the instance comes before a module's registered one, which stays where it is.
        network.update(zip(names, (down, middle), strict=True))
        try:
            yield
        finally:
            for name in names:
                network.pop(name, None)


class _OtherRows(TimestepBlock):
    """A block's stand-in: its known output at the rows of some conditionings, what it computes at those of the others.

    Args:
        block: what computes.
        output: ``(B, C, h, w)``.
        known: for each of n conditionings, whether its rows are ``output``.
        context, options: of the call of the network, ``(n * B, L, D)``.
    """

    def __init__(
        self, block: nn.Module, output: Tensor, known: Sequence[bool], context: Tensor, options: Mapping[str, Any]
    ) -> None:
        super().__init__()
        # Not as a part of it: a module would take them over.
        self._given = (block, output, known, self._others(context, known), options)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """As the block, ``(n * B, ...)``; always new memory, because ControlNet adds to it in place."""
        block, output, known, context, options = self._given
        if all(known):
            return torch.cat([output] * len(known))
        computed = block(self._others(x, known), self._others(emb, known), context, options)
        parts = iter(computed.chunk(known.count(False)))
        return torch.cat([output if there else next(parts) for there in known])

    @staticmethod
    def _others(tensor: Tensor, known: Sequence[bool]) -> Tensor:
        chunks = [chunk for chunk, there in zip(tensor.chunk(len(known)), known, strict=True) if not there]
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks or [tensor[:0]])
