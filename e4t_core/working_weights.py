"""The weights that a UNet computes with while others, their masters, are trained.

Once per optimizer step every weight is made from its masters and rounded to the UNet's number type: its working weight, a
leaf of the graph. The backward pass ends there. From a leaf's gradient go on, one weight after the other: the chain
rule to the masters, AdamW, the new working weight. So the products of all weights and the gradients of all masters never
exist at once, however many micro-batches make a step, and masters may live where the UNet does not.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

from .loop_settings import LoopSettings
from .memory_plan import MemoryPlan
from .optimizer import make_optimizer, set_rate, undo_step
from .trained_weight import TrainedWeight


class WorkingWeights:
    """All weights that one run lends to the UNet.

    Args:
        weights: by canonical name.
        settings: of AdamW.
        plan: where the state lives, and how it rests.
        device: the UNet's.
        dtype: the UNet's.
    """

    def __init__(
        self,
        weights: Mapping[str, TrainedWeight],
        settings: LoopSettings,
        plan: MemoryPlan,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._parts = {
            name: _Part(weight, settings, plan.half_moments, device, dtype) for name, weight in weights.items()
        }
        self._trained = [part for part in self._parts.values() if part.optimizer is not None]
        self.tensors: dict[str, Tensor] = {name: part.leaf for name, part in self._parts.items()}
        """What to lend to ``UNet.using``; they are written to by every step."""

    def step_in_backward(self) -> None:
        """From now on, a gradient is used, and gone, as soon as a backward pass has completed it.

        Only where one backward pass covers the batch. A gradient that is not finite changes nothing.
        """
        for part in self._trained:
            # PyTorch's hooks are not seen by Python's garbage collector: a strong reference would be for ever.
            known = weakref.ref(part)
            part.leaf.register_post_accumulate_grad_hook(lambda _leaf, known=known: known().step())

    def set_rate(self, share: float) -> None:
        """The learning rate as a share of the settings'."""
        for part in self._trained:
            assert part.optimizer is not None
            set_rate(part.optimizer, share)

    def gradients(self) -> list[Tensor]:
        """The gradients that are waiting."""
        return [part.leaf.grad for part in self._trained if part.leaf.grad is not None]

    def forget_gradients(self) -> None:
        """Drop those that are waiting."""
        for part in self._trained:
            part.leaf.grad = None

    def step(self, scale: float = 1.0) -> None:
        """One optimizer step with all gradients that are waiting; they are gone afterwards.

        Args:
            scale: that the loss was multiplied by.
        """
        for part in self._trained:
            if part.leaf.grad is not None:
                part.step(scale)

    def skipped(self) -> bool:
        """Whether a gradient of the last step was not finite, so that its weight was left as it was."""
        found = [part.bad for part in self._trained if part.bad is not None]
        return bool(found) and bool(torch.stack([bad.reshape(()) for bad in found]).any())

    def end(self) -> None:
        """The last step has been made: AdamW's moments are not needed any more."""
        for part in self._trained:
            part.optimizer, part.leaf.grad = None, None

    def undo(self, step: int) -> bool:
        """Take step number ``step``, counted from 1, back where it was made; whether all masters are finite then."""
        finite = True
        for part in self._trained:
            finite &= part.undo(step)
        return finite


class _Part:
    """One weight: masters, AdamW and the leaf."""

    def __init__(
        self,
        weight: TrainedWeight,
        settings: LoopSettings,
        half_moments: bool,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.weight, self._half = weight, half_moments
        with torch.no_grad():
            made = weight.make()
            self.leaf = made.detach().to(device, dtype)
        # Where number type and device are the same, a weight that trains as it is shares its master's memory.
        self._is_master = any(made is p for p in weight.parameters) and made.device == device and made.dtype == dtype
        self.bad: Tensor | None = None
        self.optimizer: torch.optim.AdamW | None = None
        if weight.parameters:
            self.leaf.requires_grad_()
            self.optimizer = make_optimizer([{"params": list(weight.parameters)}], settings, fused=device.type != "cpu")

    def step(self, scale: float = 1.0) -> None:
        """The leaf's gradient to the masters, AdamW, the new leaf."""
        gradient, self.leaf.grad = self.leaf.grad, None
        assert gradient is not None and self.optimizer is not None
        with torch.enable_grad():
            made = self.weight.make()
            gradient = gradient.to(made.device, made.dtype)
            if scale != 1.0:
                gradient = gradient / scale
            self.bad = torch.isfinite(gradient).all().logical_not()
            parameters = self.weight.parameters
            if made is parameters[0]:
                parameters[0].grad = gradient
            else:
                made.backward(gradient)
        del made, gradient
        if self.bad.device.type == "cuda":
            # To ask the card would wait for it: its AdamW is told to change nothing.
            self.optimizer.found_inf = self.bad.float()  # type: ignore[attr-defined]
        elif self.bad:
            self.optimizer.zero_grad(set_to_none=True)
            return
        self._moments_to(torch.float32)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self._half:
            self._moments_to(torch.bfloat16)
        self._renew()

    @torch.no_grad()
    def _renew(self) -> None:
        if not self._is_master:
            self.leaf.copy_(self.weight.make())

    def _moments_to(self, dtype: torch.dtype) -> None:
        assert self.optimizer is not None
        for state in self.optimizer.state.values():
            for key in ("exp_avg", "exp_avg_sq"):
                if state:
                    state[key] = state[key].to(dtype)

    @torch.no_grad()
    def undo(self, step: int) -> bool:
        assert self.optimizer is not None
        first = self.optimizer.state.get(self.weight.parameters[0])
        if first and int(first["step"]) == step:
            self._moments_to(torch.float32)
            undo_step(self.optimizer)
            self._renew()
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.weight.parameters)
