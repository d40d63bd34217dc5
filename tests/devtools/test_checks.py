"""`dev.py test`: which tests it runs, in which order, and which files the type checker sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from devtools.checks import FIRST, suite, typed
from devtools.pack_types import NODES, check_pack
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


def test_types_are_checked_in_every_room() -> None:
    rooms = {path.parent.name for path in REPOSITORY.glob("*/__init__.py") if not path.parent.name.startswith(".")}
    assert {*typed(), NODES} == {*rooms, "dev.py"}


@pytest.mark.parametrize(("method", "status"), [("word", 0), ("renamed", 1)])
def test_a_node_that_calls_what_the_core_does_not_have_is_noticed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], method: str, status: int
) -> None:
    files = {
        "__init__.py": "",
        "e4t_core/__init__.py": "",
        "e4t_core/concept.py": "class Concept:\n    def word(self) -> str:\n        return ''\n",
        "nodes/__init__.py": "",
        "nodes/host/__init__.py": "",
        "nodes/host/held.py": f"from ...e4t_core.concept import Concept\n\nWORD = Concept().{method}()\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert check_pack(tmp_path) == status
    assert status == 0 or '"Concept" has no attribute "renamed"' in capfd.readouterr().out
