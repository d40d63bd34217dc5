"""Puts the repository root at the END of the path, where it shadows no other package; and a thread for small networks."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if str(ROOT := Path(__file__).resolve().parents[2]) not in sys.path:
    sys.path.append(str(ROOT))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several would wait for each other beside the other workers' tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
