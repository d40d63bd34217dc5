"""What an artist's installation holds: the repository's files without those that .comfyignore names."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pathspec
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def archive() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    ignored = pathspec.GitIgnoreSpec.from_lines((ROOT / ".comfyignore").read_text().splitlines())
    return {name for name in listed.stdout.splitlines() if not ignored.match_file(name)}


def test_it_holds_nodes_core_help_pages_and_the_workflow(archive: set[str]) -> None:
    wanted = {"__init__.py", "pyproject.toml", "README.md", "LICENSE", "workflows/one_photo.json"}
    for folder in ("nodes", "e4t_core", "web"):
        wanted |= {
            file.relative_to(ROOT).as_posix()
            for file in (ROOT / folder).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
    assert "web/docs/E4TPersonalize.md" in wanted
    assert wanted - archive == set()


def test_it_holds_nothing_that_is_run_from_a_clone_only(archive: set[str]) -> None:
    rooms = {name.split("/")[0] for name in archive}
    assert rooms.isdisjoint({"tests", "miniworld", "benchmarks", "commands", "devtools", "docs", "dev.py", ".ci"})
