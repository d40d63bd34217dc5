"""The commands stand on the core: they look neither into the nodes nor into ComfyUI, and use no network of their own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "commands").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_imports_neither_nodes_nor_comfyui(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        roots = {name.split(".")[0] for name in names}
        assert not roots & {"nodes", "comfy", "folder_paths", "miniworld", "benchmarks", "devtools"}, (
            f"line {node.lineno}"
        )
