"""ComfyUI's "Free model and node cache" (``POST /free``) frees what this pack keeps as well: faces, prompts, encoders."""

from __future__ import annotations

import functools
from typing import Any

import execution

from .result_store import ResultStore


def free_with_node_cache(store: ResultStore) -> None:
    """From now on, whatever empties ComfyUI's cache of node results empties the store.

    This wraps a method of core, because core tells nobody: its worker keeps the executor to itself, looks at the flags of
    ``/free`` between two jobs, and makes the executor a new cache (ComfyUI, main.py and execution.py). Cache providers
    (comfy_execution/cache_provider.py) hear of single jobs only. Keeping concepts weakly, beside what ComfyUI caches, would
    free them with it, but also whenever a job without them runs, and that would learn them again.
    """
    reset = execution.PromptExecutor.reset

    @functools.wraps(reset)
    def reset_and_free(self: Any) -> None:
        reset(self)
        store.clear()

    execution.PromptExecutor.reset = reset_and_free
