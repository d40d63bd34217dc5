"""Puts the repository root and this folder at the END of the path: neither may shadow another package."""

import sys
from pathlib import Path

for folder in (Path(__file__).parents[2], Path(__file__).parent):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
