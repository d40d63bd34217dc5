"""`python -m devtools.program MODULE ARGS`: runs a module in `.venv`; Ctrl-C and a failure are one line, no traceback."""

from __future__ import annotations

import runpy
import signal
import sys

from .console import Failure, plain_output, say


def main() -> int:
    """Runs the module named on the command line as `python -m` would; the exit status if it does not exit itself."""
    plain_output()
    # A polite kill ends ComfyUI too, by way of the `finally` clauses.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("\nEnded by a signal."))
    module = sys.argv[1]
    # runpy puts the module's file in the place of the first word.
    del sys.argv[1]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Failure as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("\nEnded.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
