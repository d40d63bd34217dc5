"""The bar on the node that is executing, for work in steps; and the cancel button."""

from __future__ import annotations

import comfy.model_management
from comfy_api.latest import ComfyAPISync
from comfy_execution.utils import get_executing_context


def advance(step: int, steps: int) -> None:
    """Show that so many of the steps are done.

    Raises:
        InterruptProcessingException: the person has cancelled. It is no ``Exception``: clean up in ``finally``.
    """
    comfy.model_management.throw_exception_if_processing_interrupted()
    if get_executing_context() is not None:
        ComfyAPISync().execution.set_progress(step, max(steps, 1))
