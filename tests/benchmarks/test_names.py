"""Every benchmark starts, and what it takes from the pack by name is there: most of them run in no other test."""

from __future__ import annotations

import ast
import importlib
import runpy
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "benchmarks").glob("*.py"))
COMMANDS = [path.stem for path in FILES if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", [path.stem for path in FILES if path.stem not in COMMANDS])
def test_a_module_of_the_benchmarks_can_be_imported(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_says_what_it_is_for(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        # Another benchmark may have imported it; it runs once more all the same.
        warnings.filterwarnings("ignore", "'benchmarks", RuntimeWarning)
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    assert f"benchmarks.{name}" in capsys.readouterr().out


@cache
def _defined(module: str) -> frozenset[str]:
    """Names at the top of a module of the pack."""
    path = ROOT.joinpath(*module.split("."))
    path = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return frozenset(found)


def _asked_of_pack(node: ast.AST) -> str | None:
    """The module that `host.pack("nodes.host.learning.learn")`, or `pack(...)`, gives."""
    if not isinstance(node, ast.Call) or len(node.args) != 1:
        return None
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    argument = node.args[0]
    return str(argument.value) if name == "pack" and isinstance(argument, ast.Constant) else None


def _uses(source: str) -> Iterator[tuple[int, str, str]]:
    """(line, module, name) of what a benchmark takes from modules that it gets by `pack`."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        modules: dict[str, str] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                    pairs = zip(target.elts, node.value.elts, strict=True) if several else [(target, node.value)]
                    for place, value in pairs:
                        module = _asked_of_pack(value)
                        if module and isinstance(place, ast.Name):
                            modules[place.id] = module
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute):
                of = node.value
                module = modules.get(of.id) if isinstance(of, ast.Name) else _asked_of_pack(of)
                if module:
                    yield node.lineno, module, node.attr
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "set_to":
                of = node.args[0]
                module = modules.get(of.id) if isinstance(of, ast.Name) else _asked_of_pack(of)
                if module:
                    yield from ((node.lineno, module, change.arg or "") for change in node.keywords)


def _missing(source: str) -> list[str]:
    return [f"line {line}: {module}.{name}" for line, module, name in _uses(source) if name not in _defined(module)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_a_benchmark_takes_from_the_pack_is_there(path: Path) -> None:
    assert not _missing(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        'host.pack("nodes.host.networks.base_model").Gone(model)',
        'compute = pack("nodes.host.networks.compute_type"); compute.gone = None',
        'needs, compute = None, host.pack("nodes.host.networks.compute_type"); compute.gone(device)',
        'compute = host.pack("nodes.host.networks.compute_type"); set_to(compute, gone=None)',
    ],
)
def test_what_is_gone_from_the_pack_is_noticed(line: str) -> None:
    assert len(_missing(f"def measure():\n    {line}\n")) == 1
