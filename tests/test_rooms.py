"""The house's rooms: which may import which. Arrows lead downward only, core ← nodes, commands ← miniworld ← benchmarks."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Room -> the rooms that it may import from, and "ui" (ComfyUI's node API) or "comfyui" (all of ComfyUI).
CORE = {"e4t_core", "e4t_core/files", "e4t_core/methods"}
ARROWS: dict[str, set[str]] = {
    "__init__.py": {"nodes"},
    "e4t_core": {"e4t_core"},
    # Single files of these two build on one another; that no circle comes of it has a test of its own.
    "e4t_core/files": CORE,
    "e4t_core/methods": CORE,
    "nodes": {*CORE, "nodes", "nodes/host", "ui"},
    "nodes/host": {*CORE, "nodes/host", "comfyui"},
    "commands": {*CORE, "commands", "commands/base"},
    "commands/base": {*CORE, "commands/base"},
    # A process of its own, in which the commands that start it must not take part.
    "commands/inside": {*CORE, "commands", "commands/inside", "comfyui"},
    "miniworld": {*CORE, "commands", "commands/base", "miniworld"},
    # The benchmarks drive the pack inside ComfyUI, whose own "nodes" they call.
    "benchmarks": {
        *(
            *CORE,
            "commands",
            "commands/base",
            "commands/inside",
            "miniworld",
            "devtools",
            "benchmarks",
            "comfyui",
            "nodes",
        ),
    },
    "devtools": {"devtools"},
    "dev.py": {"devtools"},
}
HOUSE = {row.partition("/")[0] for row in ARROWS} - {"__init__.py", "dev.py"} | {"tests", "dev"}
COMFYUI = {
    *("api_server", "comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras"),
    *("comfyui_version", "cuda_malloc", "execution", "folder_paths", "latent_preview", "node_helpers", "server"),
}
"""ComfyUI's own modules at the top of its tree, without `nodes`, which is a room of ours too."""
# What artists install, and what it may need beyond the standard library: ComfyUI has it all.
INSTALLED = ("__init__.py", "e4t_core", "nodes")
OTHERS = {"torch", "safetensors", "open_clip", "numpy", "PIL", "psutil", *COMFYUI}
CORE_OTHERS = {"torch", "safetensors", "open_clip"}
FORBIDDEN_CALLS = {
    *("print", "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"),
    *(
        "importlib.import_module",
        "import_module",
        "os.system",
        "os.popen",
        "torch.load",
        "torch.save",
        "torch.hub.load",
    ),
}
FORBIDDEN_MODULES = {
    *("pickle", "marshal", "shelve", "dill", "runpy", "code", "ctypes", "subprocess", "multiprocessing"),
    *("socket", "ssl", "urllib", "http", "ftplib", "smtplib", "webbrowser", "requests", "aiohttp", "websocket"),
}


def _files(*rooms: str) -> list[Path]:
    found: list[Path] = []
    for room in rooms:
        path = ROOT / room
        found += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return found


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _room(name: str) -> str:
    """The row of ARROWS that holds for a file or module "a/b/c"; without one, the first part of its name."""
    rows = [row for row in ARROWS if name == row or name.startswith(f"{row}/") or f"{name}.py" == row]
    return max(rows, key=len) if rows else name.split("/")[0]


def _imports(name: str, source: str) -> Iterator[tuple[int, str, bool]]:
    """(line, module as "a/b/c" from the root of the house, whether the import is relative) of the file called `name`."""
    here = name.split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.replace(".", "/"), False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= len(here) + 1, f"{name} line {node.lineno} leaves the house"
            start = here[: len(here) - node.level + 1] if node.level else []
            module = "/".join([*start, *(node.module.split(".") if node.module else ())])
            # "from .host.learning import personalize" names a module behind the import, too.
            for alias in node.names:
                yield node.lineno, f"{module}/{alias.name}".strip("/"), node.level > 0


def wrong_arrows(name: str, source: str) -> list[str]:
    """What the file imports from rooms that its own does not stand on."""
    allowed, wrong = ARROWS[_room(name)], []
    for line, module, relative in _imports(name, source):
        top = module.split("/")[0]
        if not relative and top in COMFYUI:
            is_right = "comfyui" in allowed or ("ui" in allowed and top == "comfy_api")
        elif top in HOUSE or relative:
            is_right = _room(module) in allowed
        else:
            continue
        if not is_right:
            wrong.append(f"{name} line {line} imports {module}")
    return wrong


def wrong_in_what_artists_install(name: str, source: str) -> list[str]:
    """What the file needs beyond ComfyUI, and what it does that no artist expects of a node pack."""
    others = CORE_OTHERS if name.startswith("e4t_core") else OTHERS
    wrong = []
    for line, module, relative in _imports(name, source):
        top = module.split("/")[0]
        if relative:
            continue
        if top not in others | sys.stdlib_module_names:
            # Our own rooms too: ComfyUI imports the pack under a name of its choosing.
            wrong.append(f"{name} line {line} imports {module}, which ComfyUI may not have under this name")
        if top in FORBIDDEN_MODULES or module == "importlib/import_module":
            wrong.append(f"{name} line {line} imports {module}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN_CALLS:
            wrong.append(f"{name} line {node.lineno} calls {ast.unparse(node.func)}")
    return wrong


@pytest.mark.parametrize("path", _files(*ARROWS), ids=_name)
def test_a_room_imports_only_what_stands_below_it(path: Path) -> None:
    assert wrong_arrows(_name(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", _files(*INSTALLED), ids=_name)
def test_what_artists_install_needs_nothing_beyond_comfyui_and_keeps_to_itself(path: Path) -> None:
    assert wrong_in_what_artists_install(_name(path), path.read_text(encoding="utf-8")) == []


# A file of every room, as it might be called.
SAMPLES = {row: row if row.endswith(".py") else f"{row}/some/file.py" for row in ARROWS}


@pytest.mark.parametrize("row", ARROWS)
def test_every_arrow_that_the_table_lacks_is_seen(row: str) -> None:
    """Every room is planted into every file it may not be in, in each way that Python can say it."""
    targets = {name: name.replace("/", ".") for name in ARROWS if name not in ("__init__.py", "dev.py")}
    targets |= {"comfyui": "comfy.samplers", "ui": "comfy_api.latest", "tests": "tests.comfyui"}
    if row in ("benchmarks", "commands/inside", "nodes/host"):
        del targets["ui"]
    depth = "." * SAMPLES[row].count("/")
    for target, module in targets.items():
        if target in ARROWS[row]:
            assert wrong_arrows(SAMPLES[row], f"import {module}.x\n") == []
            continue
        head, _, tail = module.rpartition(".")
        ways = [f"import {module}.x", f"from {module} import x", f"def f():\n    from {module}.x import y"]
        ways += [f"from {head} import {tail}"] if head else [f"import {module}"]
        if target in ARROWS or target == "tests":
            ways += [f"from .{depth}{module} import x", f"from .{depth}{module}.x import y"]
        for way in ways:
            assert wrong_arrows(SAMPLES[row], way), f"{SAMPLES[row]} may say: {way}"


@pytest.mark.parametrize(
    "planted",
    [
        *("import e4t_core.unet", "from nodes import host", "import requests", "import pickle", "import torchvision"),
        *("from importlib import import_module", "import importlib\nimportlib.import_module('x')", "eval('1')"),
        *("import os\nos.system('x')", "import torch\ntorch.load('x')", "def f():\n    print(1)", "import http.server"),
    ],
)
@pytest.mark.parametrize("name", ["e4t_core/x.py", "nodes/x.py", "nodes/host/prompt/x.py"])
def test_what_artists_must_not_get_is_seen(name: str, planted: str) -> None:
    assert wrong_in_what_artists_install(name, planted)


def _modules() -> dict[str, Path]:
    """Every module of the house by its name "a/b/c", packages by their folder's."""
    return {_name(path).removesuffix(".py").removesuffix("/__init__"): path for path in _files(*ARROWS)}


def circles(imported: dict[str, set[str]]) -> list[str]:
    """One circle, as names in a row, for every module that is met again on the way down from it."""
    done: set[str] = set()
    found: list[str] = []

    def follow(name: str, way: list[str]) -> None:
        if name in way:
            found.append(" -> ".join([*way[way.index(name) :], name]))
        elif name not in done:
            for below in sorted(imported[name]):
                follow(below, [*way, name])
            done.add(name)

    for name in sorted(imported):
        follow(name, [])
    return found


def test_no_module_comes_back_to_itself() -> None:
    modules = _modules()
    imported: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for _, module, _ in _imports(_name(path), path.read_text(encoding="utf-8")):
            # The last part is a module, or a name inside one.
            met = module if module in modules else module.rpartition("/")[0]
            # A package that hands on names of its own modules is no circle.
            if met in modules and met != name and not met.startswith(f"{name}/") and not name.startswith(f"{met}/"):
                imported[name].add(met)
    assert sum(map(len, imported.values())) > 100, "this finds no imports and proves nothing"
    assert circles(imported) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a -> b -> c -> a"]


def test_methods_know_the_core_and_not_one_another() -> None:
    methods = ROOT / "e4t_core" / "methods"
    for path in sorted(methods.rglob("*.py")):
        own = path.relative_to(methods).parts[0].removesuffix(".py")
        if own == "registered":
            continue  # the list of them
        for line, module, _ in _imports(_name(path), path.read_text(encoding="utf-8")):
            parts = module.split("/")
            if parts[:2] == ["e4t_core", "methods"] and len(parts) > 2:
                assert parts[2] == own, f"{_name(path)} line {line} imports {module}"


@pytest.mark.parametrize("path", _files(*INSTALLED), ids=_name)
def test_shipped_files_are_readable_with_windows_own_encoding(path: Path) -> None:
    """Registry lints and some Windows tools read Python files as cp1252."""
    path.read_text(encoding="utf-8").encode("cp1252")
