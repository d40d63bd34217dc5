"""``python -m commands.pretrain --config CONFIG [section.key=value …]``: pre-train a domain.

On several GPUs or nodes: ``accelerate launch … -m commands.pretrain --config CONFIG``, or ``torchrun -m``. It starts where the
last checkpoint in ``output.folder`` ends; Ctrl-C saves first. At the end the domain file lies in ``output.folder``: put it
into ComfyUI's ``models/e4t_domains``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from commands.interruptible import GOES_ON, importing, interruptible


@interruptible(GOES_ON)
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0, 1 after a fault, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="commands.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="TOML file, or the name of a shipped one")
    parser.add_argument("--dry-run", action="store_true", help="three steps on the real shapes, nothing is written")
    parser.add_argument("--export", action="store_true", help="only write the domain file of the last checkpoint")
    parser.add_argument("--accept-changes", action="store_true", help="go on although settings have changed")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    if options.export and options.dry_run:
        parser.error("--export writes a file and --dry-run writes nothing: give one of them")
    with importing(GOES_ON):
        from .start import start

    return start(
        options.config, options.overrides, export=options.export, dry=options.dry_run, accept=options.accept_changes
    )


if __name__ == "__main__":
    raise SystemExit(main())
