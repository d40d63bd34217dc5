"""The door: what ComfyUI imports and lists, and that the pack imports without ComfyUI."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import e4t_pack
import pytest

from e4t_core.loop_settings import SamplingSettings
from e4t_core.methods.e4t.hypernetwork import HyperNetwork
from e4t_core.methods.e4t.settings import PRESETS, TuningSettings
from e4t_core.methods.registered import SIBLINGS, TITLES, node_id
from e4t_core.settings import settings_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def listed():
    extension = asyncio.run(e4t_pack.comfy_entrypoint())
    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}


def test_the_nodes_are_listed_by_their_names(listed):
    names = {node_id: node.GET_SCHEMA().display_name for node_id, node in listed.items()}
    assert names == {
        "E4TLoadDomain": "Load E4T Domain",
        "E4TPersonalize": "E4T Personalize",
        "E4TSettings": "E4T Settings",
        "E4THyperNetwork": "Learn Photo (HyperNetwork)",
        **{node_id(kind): f"Learn Photo ({kind.title})" for kind in SIBLINGS},
        "E4TSaveConcept": "Save E4T Concept",
        "E4TLoadConcept": "Load E4T Concept",
        "E4TApplyConcept": "Apply E4T Concept",
        "E4TMixConcepts": "Mix E4T Concepts",
        "E4TExportConcept": "Export E4T Concept",
        "E4TRegions": "E4T Regions",
    }


def test_pressing_queue_twice_tunes_once_because_the_seed_stays(listed):
    inputs = listed["E4TPersonalize"].INPUT_TYPES()
    seed = inputs["required"]["seed"][1]
    assert seed["control_after_generate"] == "fixed"
    assert inputs["required"]["trigger"][1]["default"] == "S*"
    assert set(inputs["optional"]) == {
        *("mask", "settings", "mask_means", "crop", "which", "boxes", "preview_every", "square"),
    }


def test_every_input_has_a_tooltip(listed):
    for node in listed.values():
        # What is hidden comes from ComfyUI; nobody sees it.
        for inputs in (declared for kind, declared in node.INPUT_TYPES().items() if kind != "hidden"):
            for name, declared in inputs.items():
                assert declared[1].get("tooltip"), f"{node.__name__}.{name}"


def test_every_node_has_a_help_page_that_explains_each_input_and_output(listed):
    folder = ROOT / e4t_pack.WEB_DIRECTORY / "docs"
    assert {page.stem for page in folder.glob("*.md")} == set(listed)
    for called, node in listed.items():
        page = (folder / f"{called}.md").read_text(encoding="utf-8")
        names = [name for kind, inputs in node.INPUT_TYPES().items() if kind != "hidden" for name in inputs]
        names += [output.display_name for output in node.GET_SCHEMA().outputs]
        assert page.startswith(f"# {node.GET_SCHEMA().display_name}\n")
        assert [name for name in names if f"`{name}`" not in page] == []


@pytest.mark.parametrize("path", sorted((ROOT / "workflows" / "api").glob("*.json")), ids=lambda path: path.stem)
def test_a_shipped_workflow_says_every_widget_of_our_nodes(listed, path):
    """What the page would add to it: a widget that is new has to be in the workflows, too."""
    sockets = {"MODEL", "CLIP", "VAE", "IMAGE", "MASK", "CONDITIONING", "CLIP_VISION", "BOUNDING_BOX"}
    for content in json.loads(path.read_text(encoding="utf-8")).values():
        if content["class_type"] not in listed:
            continue
        inputs = listed[content["class_type"]].GET_SCHEMA().inputs
        widgets = {one.id for one in inputs if one.io_type not in sockets and not one.io_type.startswith("E4T_")}
        assert widgets - set(content["inputs"]) == set(), content["class_type"]


def test_every_method_has_a_workflow_of_its_name():
    names = {"one_photo": "E4TPersonalize", HyperNetwork.name: "E4THyperNetwork"}
    for name, node in (names | {kind.name: node_id(kind) for kind in SIBLINGS}).items():
        content = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
        assert node in {one["class_type"] for one in content.values()}, name


def test_the_browser_knows_every_method_and_every_node_that_learns(listed):
    script = (ROOT / e4t_pack.WEB_DIRECTORY / "js" / "methods.js").read_text(encoding="utf-8")
    methods, learners = script.split("export const LEARNERS")
    assert dict(re.findall(r'\["(\w+)", "([^"]+)"\]', methods)) == TITLES
    outputs = {name: {output.io_type for output in node.GET_SCHEMA().outputs} for name, node in listed.items()}
    gives = {name for name, given in outputs.items() if given >= {"MODEL", "E4T_CONCEPT"}}
    assert set(re.findall(r'"(\w+)"', learners)) == gives


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


def test_an_untouched_settings_node_is_the_domain_s_own_preset(listed):
    """By its widgets' defaults, and through the API with nothing sent."""
    inputs = listed["E4TSettings"].INPUT_TYPES()
    shown = {name: declared[1] for kind in inputs.values() for name, declared in kind.items()}
    assert "required" not in inputs or not inputs["required"]
    own = TuningSettings(steps=3, learning_rate=2e-4, train_offsets=False, beta1=0.5)
    for values in ({}, {name: options["default"] for name, options in shown.items()}):
        choice = listed["E4TSettings"].execute(**values).args[0]
        assert choice.of(own) == own and choice.sampling == SamplingSettings()


@pytest.mark.parametrize("name", [*settings_of(TuningSettings), *settings_of(SamplingSettings)])
def test_a_widget_changes_its_setting_and_no_other(listed, name):
    inputs = listed["E4TSettings"].INPUT_TYPES()
    options = inputs["optional"][name][1]
    for of in (TuningSettings, SamplingSettings):
        if name in settings_of(of):
            about = settings_of(of)[name]
    own = TuningSettings(steps=3)
    if about.kind is bool:
        drawn = name in settings_of(SamplingSettings)
        new = not getattr(SamplingSettings() if drawn else own, name)
        value = new if drawn else ("on" if new else "off")
    elif about.kind is str:
        new = value = about.choices[-1]
        assert set(about.choices) < {*options["options"]}
    else:
        new = value = about.kind(0.5 if name in ("encoder_rate", "word_strength", "end_percent") else options["max"])
    choice = listed["E4TSettings"].execute(**{name: value}).args[0]
    before, after = (own, SamplingSettings()), (choice.of(own), choice.sampling)
    changed = {
        key
        for old, now in zip(before, after, strict=True)
        for key in vars(old)
        if getattr(old, key) != getattr(now, key)
    }
    assert changed == {name}
    assert new in (getattr(after[0], name, None), getattr(after[1], name, None))


def test_a_preset_is_chosen_by_name_and_changed(listed):
    choice = listed["E4TSettings"].execute(preset="cat", steps=7).args[0]
    assert choice.of(TuningSettings()) == dataclasses.replace(PRESETS["cat"], steps=7)
    assert choice.told() == "Settings: preset cat, but steps 7 (5) (in brackets: the preset's)."


def test_a_widget_does_not_allow_what_the_setting_refuses(listed):
    for node, of in (("E4TSettings", TuningSettings), *((node_id(kind), kind.Settings) for kind in SIBLINGS)):
        inputs = listed[node].INPUT_TYPES()["optional"]
        for name, about in settings_of(of).items():
            options = inputs[name][1]
            if about.kind is str and not about.choices:
                assert about.fits(options["default"])
            elif about.kind is str:
                assert {*about.choices} <= {*options["options"]} <= {*about.choices, "preset"}
            elif about.kind is not bool:
                assert about.fits(about.kind(options["max"])), name
                assert about.fits(about.kind(options["min"])) or options["min"] == -1, name
                assert about.fits(about.kind(options["default"])) or options["default"] == -1, name
            assert about.tooltip[:20] in options["tooltip"]


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


def test_files_carry_the_version_that_is_published():
    import tomllib

    from e4t_core.version import VERSION

    assert VERSION == tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
