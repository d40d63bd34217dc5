"""What is published: the metadata that ComfyUI's registry asks for, and an archive that holds what an artist runs."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
COMFY = Path(sys.executable).with_name("comfy.exe" if os.name == "nt" else "comfy")
TOP = {
    "LICENSE",
    "README.md",
    "__init__.py",
    "e4t_core",
    "locales",
    "nodes",
    "pyproject.toml",
    "requirements.txt",
    "subgraphs",
    "web",
    "workflows",
}
"""All that lies at the top of the archive; what is new there is put here on purpose, or into .comfyignore."""
LARGEST_MB = 2.0
"""No weights, and few pictures: an artist downloads this at every update."""
SUFFIXES = {"", ".py", ".md", ".txt", ".toml", ".json", ".jpg", ".png", ".js", ".css"}
PUBLIC = {"PublisherId", "Icon"}
"""Keys of [tool.comfy] that only the owner can fill in."""


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files as they are now, in a git repository of their own: comfy-cli writes into the folder it packs."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    clone = tmp_path_factory.mktemp("clone")
    for name in filter(None, listed.stdout.split("\0")):
        # Large files that are left out would only cost time; a stand-in shows whether they are.
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            whole = name.partition("/")[0] in TOP | {".comfyignore"}
            shutil.copy(ROOT / name, clone / name) if whole else (clone / name).touch()
    subprocess.run(["git", "init", "-q"], cwd=clone, check=True)
    subprocess.run(["git", "add", "-A", "-f"], cwd=clone, check=True)
    return clone


def comfy_node(clone: Path, command: str) -> str:
    """What `comfy node COMMAND` says; asserts that it succeeded. It asks nothing and reports nothing to its makers."""
    environment = {**os.environ, "DO_NOT_TRACK": "1", "HOME": str(clone.parent), "XDG_CONFIG_HOME": str(clone.parent)}
    done = subprocess.run(
        [str(COMFY), "--skip-prompt", "node", command],
        cwd=clone,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def archive(clone: Path) -> dict[str, int]:
    """Every file of the packed archive and its size in bytes, packed by the registry's own tool."""
    comfy_node(clone, "pack")
    with zipfile.ZipFile(clone / "node.zip") as packed:
        return {entry.filename: entry.file_size for entry in packed.infolist()}


def test_the_registrys_own_validation_has_nothing_to_say(clone: Path) -> None:
    said = comfy_node(clone, "validate")
    assert "All validation checks passed" in said
    assert "Warning" not in said and "Error" not in said


def test_the_registrys_own_validation_sees_what_is_forbidden(clone: Path) -> None:
    """A validation that passes everything would prove nothing."""
    bad = clone / "nodes" / "bad.py"
    bad.write_text("exec('print(1)')\n")
    try:
        assert "S102" in comfy_node(clone, "validate")
    finally:
        bad.unlink()


def test_the_archives_top_is_exactly_what_an_artist_needs(archive: dict[str, int]) -> None:
    assert {name.partition("/")[0] for name in archive} == TOP


def test_it_holds_all_nodes_core_help_pages_workflows_and_blueprints(archive: dict[str, int]) -> None:
    wanted = {
        path.relative_to(ROOT).as_posix()
        for folder in ("nodes", "e4t_core", "locales", "subgraphs", "web", "workflows")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "api" not in path.relative_to(ROOT).parts
    }
    assert {"web/docs/E4TPersonalize.md", "locales/zh/nodeDefs.json"} < wanted and "workflows/one_photo.json" in wanted
    assert wanted - set(archive) == set(), "not tracked by git, or named in .comfyignore"


def test_every_workflow_has_the_picture_that_the_template_browser_shows(archive: dict[str, int]) -> None:
    found = [Path(name) for name in archive if Path(name).parent.name == "workflows"]
    named = {suffix: {path.stem for path in found if path.suffix == suffix} for suffix in (".json", ".jpg")}
    assert named[".json"] == named[".jpg"]


def test_it_is_small_and_holds_no_weights(archive: dict[str, int]) -> None:
    assert {Path(name).suffix for name in archive if "/" in name} <= SUFFIXES
    assert sum(archive.values()) < LARGEST_MB * 2**20, sorted(archive.items(), key=lambda item: -item[1])[:5]


def test_nothing_in_it_imports_what_is_left_out(archive: dict[str, int]) -> None:
    left_out = {path.name for path in ROOT.iterdir() if path.is_dir()} - TOP
    assert {"miniworld", "commands", "tests", "benchmarks", "devtools"} <= left_out
    for name in archive:
        if name.endswith(".py"):
            for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                assert left_out.isdisjoint(module.partition(".")[0] for module in modules), name


def test_the_name_keeps_the_registrys_rules(project: dict) -> None:
    name = project["project"]["name"]
    assert len(name) < 100
    assert re.fullmatch(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*", name)
    assert "comfy" not in name.lower()


def test_the_metadata_is_complete_but_for_what_only_the_owner_knows(project: dict) -> None:
    about, comfy = project["project"], project["tool"]["comfy"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"])
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert (ROOT / about["license"]["file"]).is_file()
    assert about["description"] and comfy["DisplayName"] and about["dependencies"] == []
    assert set(about["urls"]) == {"Repository", "Documentation", "Bug Tracker"}
    assert comfy.keys() >= PUBLIC
    guide = (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8")
    assert all(key in guide for key in (*about["urls"], *PUBLIC))


def test_the_icon_fits_the_registry_and_is_what_its_command_draws() -> None:
    from devtools.icon import ICON, draw

    assert ICON.stat().st_size < 100_000
    with Image.open(ICON) as icon:
        assert icon.size == (400, 400)
        assert icon.convert("RGBA").tobytes() == draw().tobytes()
