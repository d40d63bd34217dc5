"""The house's rooms: which may import which. Arrows lead downward only, core ← nodes, commands ← miniworld ← benchmarks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "server"}
# Room -> what it may import of this house (a longer name's row holds for it) and of ComfyUI.
ARROWS: dict[str, set[str]] = {
    "__init__.py": {"nodes"},
    "e4t_core": {"e4t_core"},
    "nodes": {"e4t_core", "nodes", "ui"},
    "nodes/host": {"e4t_core", "nodes/host", "comfyui"},
    "commands": {"e4t_core", "commands"},
    "miniworld": {"e4t_core", "commands", "miniworld"},
    # The benchmarks drive the pack inside ComfyUI, whose own "nodes" they call.
    "benchmarks": {"e4t_core", "commands", "miniworld", "devtools", "benchmarks", "comfyui", "nodes"},
    "devtools": {"devtools"},
    "dev.py": {"devtools"},
}
# What artists install, and what it may need beyond the standard library: ComfyUI has it all.
INSTALLED = ("__init__.py", "e4t_core", "nodes")
OTHERS = {"torch", "safetensors", "open_clip", "numpy", "PIL", "psutil", *COMFYUI}
CORE_OTHERS = {"torch", "safetensors", "open_clip"}
HOUSE = {"e4t_core", "nodes", "commands", "miniworld", "benchmarks", "devtools", "tests"}
FORBIDDEN_CALLS = {"print", "eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "subprocess", "socket", "urllib", "http", "requests", "ctypes"}


def _files(*rooms: str) -> list[Path]:
    found: list[Path] = []
    for room in rooms:
        path = ROOT / room
        found += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return found


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _room(name: str) -> str:
    """The row of ARROWS that holds for a file or module "a/b/c"."""
    rows = [row for row in ARROWS if name == row or name.startswith(f"{row}/") or f"{name}.py" == row]
    return max(rows, key=len) if rows else name.split("/")[0]


def _imports(path: Path) -> list[tuple[int, str]]:
    """(line, module as "a/b/c") of all imports, relative ones from the root of the house."""
    found = []
    here = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name.replace(".", "/")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) - node.level + 1] if node.level else ()
            assert node.level <= len(here) + 1, f"{_name(path)} line {node.lineno} leaves the house"
            module = "/".join([*start, *((node.module or "").split(".") if node.module else ())])
            # "from .host.learning import personalize" names a module behind the import, too.
            found += [(node.lineno, f"{module}/{alias.name}".strip("/")) for alias in node.names]
    return found


@pytest.mark.parametrize("path", _files(*ARROWS), ids=_name)
def test_a_room_imports_only_what_stands_below_it(path: Path) -> None:
    allowed = ARROWS[_room(_name(path))]
    for line, module in _imports(path):
        top = module.split("/")[0]
        where = f"{_name(path)} line {line} imports {module}"
        if top in COMFYUI:
            kind = "ui" if top in {"comfy_api"} and "comfyui" not in allowed else "comfyui"
            assert kind in allowed, where
        elif top in HOUSE:
            room = _room(module)
            assert room in allowed or any(room.startswith(f"{row}/") for row in allowed), where


@pytest.mark.parametrize("path", _files(*INSTALLED), ids=_name)
def test_what_artists_install_needs_nothing_beyond_comfyui(path: Path) -> None:
    import sys

    others = CORE_OTHERS if _name(path).startswith("e4t_core") else OTHERS
    for line, module in _imports(path):
        top = module.split("/")[0]
        assert top in others | HOUSE | set(sys.stdlib_module_names), f"{_name(path)} line {line} imports {module}"


@pytest.mark.parametrize("path", _files(*INSTALLED), ids=_name)
def test_what_artists_install_prints_evaluates_and_downloads_nothing(path: Path) -> None:
    for line, module in _imports(path):
        assert module.split("/")[0] not in FORBIDDEN_MODULES, f"{_name(path)} line {line} imports {module}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"{_name(path)} line {node.lineno} calls {node.func.id}"


def test_methods_know_the_core_and_not_one_another() -> None:
    methods = ROOT / "e4t_core" / "methods"
    for path in sorted(methods.rglob("*.py")):
        own = path.relative_to(methods).parts[0].removesuffix(".py")
        for line, module in _imports(path):
            parts = module.split("/")
            if parts[:2] == ["e4t_core", "methods"] and len(parts) > 2:
                assert parts[2] == own, f"{_name(path)} line {line} imports {module}"


@pytest.mark.parametrize("path", _files(*INSTALLED), ids=_name)
def test_shipped_files_are_readable_with_windows_own_encoding(path: Path) -> None:
    """Registry lints and some Windows tools read Python files as cp1252."""
    path.read_text(encoding="utf-8").encode("cp1252")
