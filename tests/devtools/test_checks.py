"""`dev.py test`: which tests it runs, and in which order."""

from __future__ import annotations

from pathlib import Path

from devtools.checks import FIRST, suite
from devtools.places import REPOSITORY


def test_every_file_of_tests_is_in_the_suite_once() -> None:
    found = [file for path in map(Path, suite()) for file in (path.rglob("test_*.py") if path.is_dir() else [path])]
    assert sorted(found) == sorted((REPOSITORY / "tests").rglob("test_*.py"))


def test_what_takes_longest_begins_first(tmp_path: Path) -> None:
    for name in ("e4t_core", "commands", "new", "server"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test_one.py").touch()
    (tmp_path / "test_alone.py").touch()
    (tmp_path / "without_tests").mkdir()
    assert [Path(path).name for path in suite(tmp_path)] == ["server", "commands", "e4t_core", "new", "test_alone.py"]


def test_folders_that_begin_first_are_there() -> None:
    assert all((REPOSITORY / "tests" / name).is_dir() for name in FIRST)
