"""The core stands on torch alone: it may not look into the other rooms."""

import ast
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "e4t_core"
ALLOWED = {"torch", "safetensors", "open_clip"}
STANDARD = {
    "__future__",
    "collections",
    "contextlib",
    "dataclasses",
    "functools",
    "hashlib",
    "json",
    "logging",
    "math",
    "os",
    "pathlib",
    "typing",
}


@pytest.mark.parametrize("path", sorted(CORE.glob("*.py")), ids=lambda path: path.name)
def test_the_core_imports_torch_and_itself_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            roots = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots = set() if node.level == 1 else {(node.module or "").split(".")[0]}
            assert node.level <= 1, f"{path.name} line {node.lineno} leaves the core"
        else:
            continue
        assert roots <= ALLOWED | STANDARD, f"{path.name} line {node.lineno}"


@pytest.mark.parametrize("path", sorted(CORE.glob("*.py")), ids=lambda path: path.name)
def test_the_core_logs_and_never_prints_or_evaluates(path: Path) -> None:
    calls = [node.func.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if _is_call_of_name(node)]  # type: ignore[attr-defined]
    assert not {"print", "eval", "exec", "compile", "__import__"} & set(calls)


def _is_call_of_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
