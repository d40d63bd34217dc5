"""Puts the repository root at the END of the path, where it shadows no other package."""

import sys
from pathlib import Path

if str(ROOT := Path(__file__).resolve().parents[2]) not in sys.path:
    sys.path.append(str(ROOT))
