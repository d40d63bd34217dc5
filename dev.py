#!/usr/bin/env python3
"""Everything that is done with a clone of this repository, on Linux, macOS and Windows, with Python 3.11 or newer.

    python3 dev.py demo            one photo becomes a word in a real ComfyUI; writes a contact sheet
    python3 dev.py serve           the same ComfyUI with this pack and the mini world, for you to click in
    python3 dev.py test [ARGS]     ruff, mypy and pytest; ARGS go to pytest
    python3 dev.py train WHAT ...  one of the mini world's trainings (python -m miniworld.train WHAT ...)
    python3 dev.py bench WHAT ...  one of the benchmarks (python -m benchmarks.WHAT ...)

The first call makes .venv and installs what is needed (about 8 GB on Linux); later calls redo nothing, and a call after
one that was cut off repairs what it left. A ComfyUI is taken from COMFYUI_PATH, from around this folder if it lies in a
ComfyUI's custom_nodes, or fetched. Everything made lies in .venv and .dev inside this folder; delete both to start
afresh.
"""

import sys

if __name__ == "__main__":
    if sys.version_info < (3, 11):
        found = sys.version.split()[0], sys.executable
        sys.exit("This is Python {} ({}); run dev.py with Python 3.11 or newer.".format(*found))
    try:
        from devtools.bootstrap import main

        sys.exit(main(__doc__))
    except KeyboardInterrupt:
        sys.exit(130)
