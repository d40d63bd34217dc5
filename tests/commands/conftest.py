"""Puts the repository root and this folder at the END of the path: neither may shadow another package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from concept_world import ConceptWorld
    from mkshing_world import Directory

for folder in (Path(__file__).parents[2], Path(__file__).parent):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, base and backbone of a quick pre-training."""
    from small_base import make_place

    return make_place(tmp_path_factory.mktemp("pretraining"))


@pytest.fixture(scope="session")
def concept_world(tmp_path_factory: pytest.TempPathFactory) -> ConceptWorld:
    """A small Stable Diffusion, and a directory of mkshing's that was tuned on it."""
    from concept_world import ConceptWorld

    return ConceptWorld(tmp_path_factory.mktemp("concepts"))


@pytest.fixture
def published(tmp_path: Path) -> Directory:
    """A directory of mkshing's as it is published, pre-trained but not tuned."""
    from mkshing_world import Directory

    return Directory(tmp_path / "pretrained")


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps its state for the process: a run needs a new one, and must not leave its own to the next."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
