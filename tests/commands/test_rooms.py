"""Commands stand on the core; what they use of the other rooms is named by a config, not imported."""

import ast
from pathlib import Path

import pytest

COMMANDS = Path(__file__).parents[2] / "commands"
OTHER_ROOMS = {"miniworld", "nodes", "benchmarks", "devtools", "comfy", "tests"}


@pytest.mark.parametrize("path", sorted(COMMANDS.rglob("*.py")), ids=lambda path: path.name)
def test_a_command_imports_no_other_room_and_evaluates_nothing(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & OTHER_ROOMS, f"line {node.lineno}"
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").split(".")[0] not in OTHER_ROOMS, f"line {node.lineno}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}, f"line {node.lineno}"
