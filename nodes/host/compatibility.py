"""Checks at import that ComfyUI has what the pack builds on, because core does not enforce a version."""

from __future__ import annotations


def check_comfyui() -> None:
    """Check for the two hooks that refinement needs.

    Raises:
        ImportError: this ComfyUI is too old; one line says so.
    """
    import comfy.patcher_extension
    import comfy_execution.utils

    missing = []
    if not hasattr(comfy.patcher_extension.WrappersMP, "CALC_COND_BATCH"):
        missing.append("comfy.patcher_extension.WrappersMP.CALC_COND_BATCH")
    if not hasattr(comfy_execution.utils, "get_executing_context"):
        missing.append("comfy_execution.utils.get_executing_context")
    if missing:
        raise ImportError(f"comfyui-e4t needs ComfyUI 0.30 or newer ({', '.join(missing)} is missing): update ComfyUI.")
