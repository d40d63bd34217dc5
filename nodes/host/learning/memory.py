"""A run in the memory there is: the fastest plan that fits, and the next smaller one where it does not after all."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.model_management
import torch

from ....e4t_core.concept import Concept
from ....e4t_core.loop_settings import LoopSettings
from ....e4t_core.memory_need import Need, Work, candidates, need
from ....e4t_core.memory_plan import RAM, MemoryPlan
from ....e4t_core.run import Method
from ..networks.base_model import ComfyUNet

logger = logging.getLogger(__name__)

AUTO = "auto"
# Kinds of device that compute in RAM.
IN_RAM = ("cpu", "mps")
GB = 1e9
ADVICE = (
    "close other programs that use it, lower the picture's size, or switch train_unet off in E4T Settings (or learn by LoRA in"
    " place of DreamBooth)"
)


class TooLittleMemoryError(RuntimeError):
    """No plan fits; the message says what is needed, what is free, and what to do."""


@dataclass(frozen=True)
class Free:
    """Bytes that are free, after ComfyUI's models have left.

    Attributes:
        card: on the device that computes; its total.
        ram: of the computer; none of its own where the device computes in RAM itself (CPU, Apple).
    """

    card: float
    total: float
    ram: float | None

    @classmethod
    def now(cls, device: torch.device) -> Free:
        """What is free now, without what ComfyUI was told to leave to others."""
        comfy.model_management.soft_empty_cache()
        card = comfy.model_management.get_free_memory(device)
        total = comfy.model_management.get_total_memory(device)
        if device.type in IN_RAM:
            return cls(card, total, None)
        card -= comfy.model_management.extra_reserved_memory()
        return cls(card, total, comfy.model_management.get_free_memory(RAM))

    def holds(self, wanted: Need) -> bool:
        """Whether a need fits."""
        if self.ram is None:
            return wanted.card + wanted.ram <= self.card
        return wanted.card <= self.card and wanted.ram <= self.ram

    def told(self, wanted: Need) -> str:
        """A need beside what is free, in a few words."""
        if self.ram is None:
            return f"{(wanted.card + wanted.ram) / GB:.1f} of {self.card / GB:.1f} GB"
        beside = f" and {wanted.ram / GB:.1f} of {self.ram / GB:.1f} GB of RAM" if wanted.ram else ""
        return f"{wanted.card / GB:.1f} of {self.card / GB:.1f} GB{beside}"


def work_of(method: Method, settings: LoopSettings, unet: ComfyUNet, cells: int) -> Work:
    """What a run has to compute for photos of so many latent cells."""
    itemsize = torch.finfo(unet.dtype).bits // 8
    trained = method.trained(settings, unet)
    return Work(trained, unet.numbers, unet.width, cells, settings.batch, itemsize, unet.device.type in IN_RAM)


def plans_that_fit(settings: LoopSettings, work: Work, free: Free) -> list[MemoryPlan]:
    """The plans to try, from the fastest that fits on.

    Raises:
        TooLittleMemoryError: none fits, or not the one that was asked for.
    """
    plans = list(candidates(settings.memory, settings.micro_batch, settings.batch))
    for number, plan in enumerate(plans):
        if settings.memory not in (AUTO, plan.name):
            break
        if free.holds(need(plan, work)):
            return plans[number:]
    wanted = [plan for plan in plans if settings.memory in (AUTO, plan.name)][-1]
    taken = f"; {max(0.0, free.total - free.card) / GB:.1f} of its {free.total / GB:.1f} GB are taken"
    which = "the smallest memory plan" if settings.memory == AUTO else f"the memory plan {settings.memory!r}"
    advice = ADVICE if settings.memory == AUTO else f"choose a smaller one or auto in E4T Settings, or {ADVICE}"
    raise TooLittleMemoryError(
        f"Learning does not fit in memory: {which} ({wanted.told()}) would take {free.told(need(wanted, work))} that are"
        f" free{taken}: {advice}."
    )


def run_in_memory(
    plans: Sequence[MemoryPlan],
    run: Callable[[MemoryPlan], Concept],
    told: Callable[[MemoryPlan], str] = MemoryPlan.told,
) -> Concept:
    """Run with the first plan or, out of memory, with the next one, and so on.

    The batch stays, so that every plan gives nearly the same result.

    Args:
        plans: one or more.
        run: the run.
        told: a plan in words, for the log and the error.

    Raises:
        torch.OutOfMemoryError: the last plan did not fit; a note says what it needs and what to do. Its type stays,
            because ComfyUI recognizes it by that.
    """
    for plan, smaller in zip(plans, [*plans[1:], None], strict=True):
        try:
            return run(plan)
        except Exception as error:
            if not comfy.model_management.is_oom(error):
                raise
            if smaller is None:
                _explain(error, told(plan))
                raise
        # Outside the handler: its traceback would keep the failed run's tensors alive.
        logger.warning("E4T: out of memory with the %s; trying again with the %s.", plan.told(), smaller.told())
        comfy.model_management.unload_all_models()
        # A pass that ended halfway leaves circles of frames and hooks behind, which hold all of the failed run.
        gc.collect()
        comfy.model_management.soft_empty_cache()
    raise ValueError("There is no plan to run with.")


def _explain(error: Exception, plan: str) -> None:
    note = f"E4T ran out of memory while learning, also with the {plan}: {ADVICE}."
    if hasattr(error, "add_note"):  # Python 3.11; an older one has the log line below
        error.add_note(note)
    logger.error(note)
