"""A run in the memory there is: where a plan does not fit, the next smaller one, before anyone sees an error."""

from __future__ import annotations

import logging
from collections.abc import Callable

import comfy.model_management

from ....e4t_core.concept import Concept
from ....e4t_core.memory_plan import MemoryPlan

logger = logging.getLogger(__name__)


def run_in_memory(plan: MemoryPlan, run: Callable[[MemoryPlan], Concept]) -> Concept:
    """Run with a plan or, out of memory, with the next smaller one, and so on.

    The batch stays, so that every plan gives nearly the same result.

    Raises:
        torch.OutOfMemoryError: the smallest plan did not fit; a note says what to lower. Its type stays, because ComfyUI
            recognizes it by that.
    """
    for smaller in plan.smaller():
        try:
            return run(plan)
        except Exception as error:
            if not comfy.model_management.is_oom(error):
                raise
        # Outside the handler: its traceback would keep the failed run's tensors alive.
        logger.warning(
            "E4T: out of memory with micro_batch %d; trying again with %d.", plan.micro_batch, smaller.micro_batch
        )
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
        plan = smaller
    try:
        return run(plan)
    except Exception as error:
        if comfy.model_management.is_oom(error):
            _explain(error, plan)
        raise


def _explain(error: Exception, plan: MemoryPlan) -> None:
    note = (
        f"E4T ran out of memory while learning, also with micro_batch {plan.micro_batch}: close other programs that use the"
        " card, or switch train_unet off in E4T Settings (E4T Personalize)."
    )
    if hasattr(error, "add_note"):  # Python 3.11; an older one has the log line below
        error.add_note(note)
    logger.error(note)
