"""`python -m devtools.pack_types`: mypy on the pack as ComfyUI imports it, core and nodes inside ONE package.

The nodes reach the core by relative imports that leave the folder `nodes`. From the repository's root mypy cannot follow
these, and takes everything of the core for `Any`: it would notice nothing. So it is shown a copy below a folder with a
module's name, which the repository's own need not have.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .places import REPOSITORY

PACK, CORE, NODES = "e4t_pack", "e4t_core", "nodes"


def check_pack(root: Path = REPOSITORY) -> int:
    """mypy's exit status for the pack at `root`, by the settings of this repository; it prints what it finds."""
    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder) / PACK
        for name in (CORE, NODES):
            shutil.copytree(root / name, pack / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(root / "__init__.py", pack)
        settings = ("--config-file", str(REPOSITORY / "pyproject.toml"))
        cache = ("--cache-dir", str(root / ".mypy_cache" / PACK))
        return subprocess.run(
            [sys.executable, "-m", "mypy", *settings, *cache, "-p", PACK], cwd=folder, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(check_pack())
