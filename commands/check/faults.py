"""What goes wrong in a check, each in one sentence."""

from __future__ import annotations

from e4t_core.files.file_errors import shortened

LIMIT = 500  # characters
OUT_OF_MEMORY = "OutOfMemoryError"
MEMORY = "Memory is used up: close other programs, or lower the picture's size ({said})."


class CheckError(ValueError):
    """What a part of the check cannot do; the message is one sentence that says what to do."""


def sentence(error: BaseException) -> str:
    """An error as one line; its type is named where the message was not written for people."""
    said = " ".join(str(error).split())
    kind = type(error).__name__
    if isinstance(error, MemoryError) or kind == OUT_OF_MEMORY or "DefaultCPUAllocator" in said:
        return MEMORY.format(said=shortened(said or kind, 200))
    if isinstance(error, ModuleNotFoundError):
        return shortened(f"A package is missing ({said}): docs/check.md names what this needs.", LIMIT)
    # Ours are ValueErrors and say what to do.
    if isinstance(error, ValueError | ImportError) and said:
        return shortened(said, LIMIT)
    return shortened(f"{kind}: {said}" if said else kind, LIMIT)
