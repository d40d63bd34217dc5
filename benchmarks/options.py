"""Command-line options of the benchmarks that draw a sheet of individuals."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .arms import WEIGHTS


def sheet_options(description: str | None, out: Path) -> argparse.Namespace:
    """``out`` (a PNG), ``split``, ``domain`` and ``identities``; sets PyTorch's number of threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--split", choices=("held-out", "validation"), default="held-out")
    parser.add_argument("--domain", choices=tuple(WEIGHTS), default="face")
    parser.add_argument("--identities", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options
