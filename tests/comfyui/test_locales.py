"""Other languages: whatever a node says in English, which its schema alone holds, is there in each of them."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import e4t_pack
import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCALES = ROOT / "locales"
LANGUAGES = sorted(path.name for path in LOCALES.iterdir() if path.is_dir())
# ComfyUI's page makes a widget of its own of this part of a seed.
OF_THE_PAGE = {"control_after_generate"}
# The page takes names and descriptions for templates; tooltips stand as they are.
TEMPLATE = re.compile(r"[{}@|]")


@pytest.fixture(scope="module")
def nodes():
    extension = asyncio.run(e4t_pack.comfy_entrypoint())
    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}


def read(language: str, name: str) -> dict:
    return json.loads((LOCALES / language / name).read_text(encoding="utf-8"))


def wanted_inputs(node) -> dict[str, bool]:
    """Every input that a person sees, and whether it has a tooltip."""
    shown = [inputs for kind, inputs in node.INPUT_TYPES().items() if kind != "hidden"]
    return {name: bool(declared[1].get("tooltip")) for inputs in shown for name, declared in inputs.items()}


def test_there_is_chinese_and_no_english_which_the_nodes_say_themselves():
    assert "zh" in LANGUAGES and "en" not in LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_input_and_output_is_there_and_nothing_else(nodes, language):
    said = read(language, "nodeDefs.json")
    assert set(said) == set(nodes)
    lacking = []
    for node_id, node in nodes.items():
        texts, schema = said[node_id], node.GET_SCHEMA()
        lacking += [f"{node_id}.{key}" for key in ("display_name", "description") if not texts.get(key)]
        inputs = wanted_inputs(node)
        for name, explained in inputs.items():
            found = texts["inputs"].get(name, {})
            keys = ("name", "tooltip") if explained else ("name",)
            lacking += [f"{node_id}.inputs.{name}.{key}" for key in keys if not found.get(key)]
        unknown = set(texts["inputs"]) - set(inputs) - OF_THE_PAGE
        assert not unknown, f"{node_id} has no input {unknown}"
        outputs = texts.get("outputs", {})
        for number, output in enumerate(schema.outputs):
            found = outputs.get(str(number), {})
            # The page names an output that is called as its type after the type.
            if (output.display_name or output.io_type) != output.io_type and not found.get("name"):
                lacking.append(f"{node_id}.outputs.{number}.name")
            if output.tooltip and not found.get("tooltip"):
                lacking.append(f"{node_id}.outputs.{number}.tooltip")
        assert set(outputs) <= {str(number) for number in range(len(schema.outputs))}
    assert not lacking, f"locales/{language}/nodeDefs.json lacks {lacking}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_our_sockets_have_a_name(nodes, language):
    types = {output.io_type for node in nodes.values() for output in node.GET_SCHEMA().outputs}
    ours = {kind for kind in types if kind.startswith("E4T_")}
    assert ours <= set(read(language, "main.json")["dataTypes"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_name_or_description_holds_what_the_page_takes_for_a_template(language):
    for node_id, texts in read(language, "nodeDefs.json").items():
        parts = [*texts["inputs"].values(), *texts.get("outputs", {}).values()]
        for text in [texts["display_name"], texts["description"], *(part["name"] for part in parts if "name" in part)]:
            assert not TEMPLATE.search(text), f"{node_id}: {text}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_choice_is_explained_by_the_name_that_the_list_shows(nodes, language):
    """Lists stay English, so a tooltip that names a choice in English has to do so in the other language, too."""
    said = read(language, "nodeDefs.json")
    for node_id, node in nodes.items():
        for kind, inputs in node.INPUT_TYPES().items():
            for name, declared in inputs.items() if kind != "hidden" else ():
                tooltip = said[node_id]["inputs"][name].get("tooltip", "")
                for choice in re.findall(r"'([^']+)'(?=:)", declared[1].get("tooltip", "")):
                    assert choice in tooltip, f"{node_id}.{name} does not explain {choice!r}"


def test_the_server_s_own_reader_gives_them_out(monkeypatch, tmp_path):
    import folder_paths
    from app.custom_node_manager import CustomNodeManager

    (tmp_path / "comfyui-e4t").symlink_to(ROOT, target_is_directory=True)
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda kind: [str(tmp_path)])
    given = CustomNodeManager().build_translations()
    assert set(given) == set(LANGUAGES)
    assert given["zh"]["nodeDefs"] == read("zh", "nodeDefs.json")
    assert given["zh"]["e4t"] == read("zh", "main.json")["e4t"]


PAGES = sorted((ROOT / "web" / "docs").glob("*/*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_a_help_page_in_another_language_explains_each_input_and_output(nodes, page):
    node, text = nodes[page.parent.name], page.read_text(encoding="utf-8")
    assert page.stem in LANGUAGES
    assert text.startswith(f"# {read(page.stem, 'nodeDefs.json')[page.parent.name]['display_name']}\n")
    names = [*wanted_inputs(node), *(output.display_name for output in node.GET_SCHEMA().outputs)]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_pages_that_are_needed_first_are_there_in_chinese():
    assert {page.parent.name for page in PAGES if page.stem == "zh"} >= {
        "E4TPersonalize",
        "E4TLoadDomain",
        "E4TSaveConcept",
    }
