"""What commands print."""

from __future__ import annotations

import io
import sys


def show_any_name() -> None:
    """Escapes what a console's encoding cannot show: names of files and texts in them may hold anything."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} KB"
