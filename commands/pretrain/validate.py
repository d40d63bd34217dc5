"""``python -m commands.pretrain.validate --config CONFIG [section.key=value …]``: is a run fit to start, and what will it take?

Checks the config, the data (each source is opened, some pictures are read), base and backbone (their networks are built
from the files' headers, without weights) and the room for checkpoints; lists everything that is wrong; estimates memory
and time. Nothing is trained or loaded onto a GPU; weights are read only for kinds named "python".
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from commands.interruptible import GOES_ON, importing, interruptible

log = logging.getLogger(__name__)


@interruptible(GOES_ON)
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="commands.pretrain.validate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="TOML file, or the name of a shipped one")
    parser.add_argument("--processes", type=int, default=1, help="GPUs in all")
    parser.add_argument("--teraflops", type=float, default=0.0, help="that training reaches per process, if known")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with importing(GOES_ON):
        from commands.base.settings import ConfigError

        from .checks import report, validate
        from .config.config_file import load_config
        from .estimate import measured_speed

    try:
        config = load_config(options.config, options.overrides)
    except ConfigError as error:
        log.error("wrong: %s", error)
        return 1
    findings = validate(config, options.processes)
    if options.teraflops > 0:
        speed, basis = options.teraflops * 1e12, f"{options.teraflops:g} TFLOP/s as given"
    else:
        speed, basis = measured_speed(config.training.precision)
    for line in report(findings, config, speed, basis, options.processes):
        log.info("%s", line)
    for problem in findings.problems:
        log.error("wrong: %s", problem)
    log.info(
        "%s", "The run can start." if not findings.problems else f"{len(findings.problems)} thing(s) to mend first."
    )
    return 1 if findings.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
