"""The door: what ComfyUI imports and lists, and that the pack imports without ComfyUI."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import e4t_pack
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def listed():
    extension = asyncio.run(e4t_pack.comfy_entrypoint())
    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}


def test_the_three_nodes_are_listed_by_their_names(listed):
    names = {node_id: node.GET_SCHEMA().display_name for node_id, node in listed.items()}
    assert names == {
        "E4TLoadDomain": "Load E4T Domain",
        "E4TPersonalize": "E4T Personalize",
        "E4TSettings": "E4T Settings",
    }


def test_pressing_queue_twice_tunes_once_because_the_seed_stays(listed):
    inputs = listed["E4TPersonalize"].INPUT_TYPES()
    seed = inputs["required"]["seed"][1]
    assert seed["control_after_generate"] == "fixed"
    assert inputs["required"]["word"][1]["default"] == "S*"
    assert set(inputs["optional"]) == {"mask", "settings"}


def test_every_input_has_a_tooltip(listed):
    for node in listed.values():
        for inputs in node.INPUT_TYPES().values():
            for name, declared in inputs.items():
                assert declared[1].get("tooltip"), f"{node.__name__}.{name}"


def test_every_node_has_a_help_page_that_explains_each_input_and_output(listed):
    folder = ROOT / e4t_pack.WEB_DIRECTORY / "docs"
    assert {page.stem for page in folder.glob("*.md")} == set(listed)
    for node_id, node in listed.items():
        page = (folder / f"{node_id}.md").read_text(encoding="utf-8")
        names = [name for inputs in node.INPUT_TYPES().values() for name in inputs]
        names += [output.display_name for output in node.GET_SCHEMA().outputs]
        assert page.startswith(f"# {node.GET_SCHEMA().display_name}\n")
        assert [name for name in names if f"`{name}`" not in page] == []


def test_sockets_are_those_of_stock_nodes(listed):
    outputs = [output.io_type for output in listed["E4TPersonalize"].GET_SCHEMA().outputs]
    assert outputs == ["MODEL", "CLIP", "E4T_CONCEPT", "LOSS_MAP"]


def test_there_is_no_v1_mapping_which_would_hide_the_entry_point():
    assert not hasattr(e4t_pack, "NODE_CLASS_MAPPINGS")


def test_the_door_is_small_and_opens_without_comfyui():
    assert len((ROOT / "__init__.py").read_text().splitlines()) < 20
    script = (
        "import importlib.util as u, sys;"
        f"s = u.spec_from_file_location('pack', r'{ROOT / '__init__.py'}', submodule_search_locations=[r'{ROOT}']);"
        "m = u.module_from_spec(s); sys.modules['pack'] = m; s.loader.exec_module(m);"
        "assert not hasattr(m, 'comfy_entrypoint')"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True, cwd="/")


def test_the_settings_node_offers_every_setting_of_tuning(listed):
    """With nothing changed it gives the face preset; each value that is set arrives."""
    inputs = listed["E4TSettings"].INPUT_TYPES()
    shown = {name: declared[1] for kind in inputs.values() for name, declared in kind.items()}
    defaults = {name: options["default"] for name, options in shown.items()}
    presets = sys.modules["e4t_core.presets"]
    assert listed["E4TSettings"].execute(**defaults).args[0] == presets.FACE
    reached = set()
    for name, options in shown.items():
        value = not defaults[name] if isinstance(defaults[name], bool) else options["min"] + 2 * options.get("step", 1)
        other = listed["E4TSettings"].execute(**{**defaults, name: value}).args[0]
        changed = {field for field in vars(other) if getattr(other, field) != getattr(presets.FACE, field)}
        assert changed, name
        reached |= changed
    assert reached == set(vars(presets.FACE))


def test_a_workflow_from_before_the_optional_settings_still_runs(listed):
    inputs = listed["E4TSettings"].INPUT_TYPES()
    required = {name: declared[1]["default"] for name, declared in inputs["required"].items()}
    assert listed["E4TSettings"].execute(**required).args[0] == sys.modules["e4t_core.presets"].FACE


def test_there_is_a_folder_to_put_domain_files_into(tmp_path, monkeypatch):
    import folder_paths
    from e4t_pack.nodes.host.model_folders import make_folder

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    make_folder()
    make_folder()
    assert (tmp_path / "models" / "e4t_domains").is_dir()
    # Where nothing can be made, ComfyUI starts all the same.
    (tmp_path / "file").touch()
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "file"))
    make_folder()
