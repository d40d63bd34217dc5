"""What a person is told when a prompt with a concept is drawn by a MODEL that knows no concepts.

Such a MODEL (a checkpoint loader's, say) has no code of ours. But a prompt with a concept brings its text encoder along,
and ComfyUI tells that text encoder when a sampling run has ended: if nothing was refined meanwhile, nobody could.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from comfy_execution.utils import get_executing_context

from ..learning.progress import show_text
from .prompt_memory import PromptMemory

logger = logging.getLogger(__name__)


def note_refinement(memory: PromptMemory) -> None:
    """Refinement saw this sampling run."""
    memory.refined = get_executing_context()


def tell_if_drawn_elsewhere(memory: PromptMemory, triggers: Sequence[str], _patcher: object = None) -> None:
    """Called when a sampling run has ended that a prompt with one of these triggers took part in.

    Outside a node (in a script) runs cannot be told apart, and nothing is said.
    """
    run = get_executing_context()
    if run is None or memory.refined == run:
        return
    memory.refined = run  # once for each run, although both prompts may hold a concept
    what = f"{triggers[0]} is" if len(triggers) == 1 else f"{' or '.join(triggers)} is"
    text = (
        f"{what} in the prompt, but this MODEL does not know it: wire the MODEL output of the node that learned it into"
        " the sampler."
    )
    logger.warning("E4T: %s", text)
    show_text(text)
