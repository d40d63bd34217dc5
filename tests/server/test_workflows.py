"""Every shipped workflow in ComfyUI's own page, in both node modes: it opens whole, means what its API twin says, and runs.

All share one page, because a page takes longer to start than a workflow to open.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypernetwork_file import write_hypernetwork
from in_browser import PATIENCE, load, needs_browser, new_page, open_workflow, ran, shipped_workflow
from PIL import Image, ImageOps
from stock_files import write_controlnet, write_face_finder, write_lora

from devtools.comfyui_client import Client
from devtools.comfyui_server import Server
from devtools.miniworld_setup import CHECKPOINT, PHOTO
from devtools.places import REPOSITORY, WORKFLOWS
from e4t_core.methods.perfusion import Perfusion
from e4t_core.methods.registered import SIBLINGS, node_id

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

    from e4t_core.sibling import Sibling

pytestmark = needs_browser

# What is not the graph's meaning: how a picture was uploaded, and where a node stands.
ONLY_IN_THE_PAGE = {"upload", "_meta"}
SHIPPED = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
LARGEST_THUMBNAIL = 60_000
SETTLES = 300
"""Milliseconds until nodes have their sizes."""
SIDE = 64
"""Of pictures, in pixels."""
QUICK: dict[str, dict[str, Any]] = {
    "KSampler": {"steps": 2},
    "EmptyLatentImage": {"width": SIDE, "height": SIDE},
    **{node_id(kind): {"steps": 2, "size": SIDE, "prior_pictures": 1} for kind in SIBLINGS},
    # "compact" would fit a small copy, which takes longer than all else here.
    "E4TSaveConcept": {"keeps": "word"},
    "ImageGrid": {"cell_width": SIDE, "cell_height": SIDE},
}
"""What a person would change in the page who wants to see an end soon: node type -> widget -> value."""
READS_MANY = (Perfusion,)
"""Whose first run encodes hundreds of captions, a minute without a graphics card: tests/comfyui/test_perfusion.py has it."""
BLUEPRINT = "Learn a photo"
LEARNED, RECOGNIZED = " learned in ", "S* in 1 of 2 prompts"
"""What the server writes when it has learned, and when a sampler draws the word."""


@pytest.fixture(scope="module")
def faults() -> list[str]:
    """What the page's console has complained of."""
    return []


@pytest.fixture(scope="module")
def desk(server: Server, browser: Browser, faults: list[str]) -> Iterator[Page]:
    """One page for all tests here, and all files that the workflows name."""
    models, photos = server.base / "models", server.base / "input"
    write_lora(models / "loras" / "mini_style.safetensors", server.base / CHECKPOINT)
    write_controlnet(models / "controlnet" / "mini_edges.safetensors", server.base / CHECKPOINT)
    write_face_finder(models / "detection" / "mediapipe_face_fp32.safetensors")
    write_hypernetwork(models / "e4t_domains" / "mini_hypernetwork.safetensors")
    with Image.open(server.base / PHOTO) as photo:
        for name in ("mini_photo_2", "mini_same_person_2", "mini_same_person_3", "mini_drawing"):
            ImageOps.mirror(photo.convert("RGB")).save(photos / f"{name}.png")
    context = browser.new_context()
    page = new_page(context, server)
    page.on("console", lambda message: note_fault(message, faults))
    page.on("pageerror", lambda error: faults.append(str(error)))
    open_workflow(page)
    yield page
    context.close()


def note_fault(message: ConsoleMessage, faults: list[str]) -> None:
    """Keeps errors, but for what the page looks for in the network or beside its files: it does so without us, too."""
    if message.type == "error" and "Failed to load resource" not in message.text:
        faults.append(message.text)


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.client.host, server.client.port)


def draw_nodes(page: Page, nodes_2: bool) -> None:
    """Draws nodes on the classic canvas, or as Nodes 2.0."""
    page.evaluate("on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", nodes_2)
    # Nodes 2.0 measures its nodes once they are drawn.
    page.wait_for_timeout(SETTLES)


def opened(page: Page, name: str, nodes_2: bool | None = None) -> None:
    """Opens a shipped workflow in a page that has started."""
    if nodes_2 is not None:
        draw_nodes(page, nodes_2)
    workflow = shipped_workflow(name)
    load(page, workflow, name)
    page.wait_for_function(
        "([workflow, named]) => window.app.graph.id === workflow.id"
        " && window.app.extensionManager.workflow.activeWorkflow.filename.startsWith(named)"
        " && window.app.graph.nodes.length === workflow.nodes.length",
        arg=[workflow, name],
    )


def set_widgets(page: Page, values: dict[str, dict[str, Any]]) -> None:
    """Sets widgets of all nodes of a type."""
    page.evaluate(
        "values => { for (const node of window.app.graph.nodes) for (const widget of node.widgets ?? [])"
        " if (widget.name in (values[node.type] ?? {})) widget.value = values[node.type][widget.name] }",
        values,
    )


def run(client: Client, page: Page) -> dict[str, Any]:
    """What became of the workflow in the page, run quickly."""
    set_widgets(page, QUICK)
    entry = ran(client, page, set(json.loads(client.get("/history"))))
    assert_apart(page)
    return entry


def assert_apart(page: Page) -> None:
    """No node has grown over another by what it says, in either node mode."""
    for nodes_2 in (True, False):
        draw_nodes(page, nodes_2)
        assert overlapping(page) == [], "Nodes 2.0" if nodes_2 else "classic canvas"


def pictures(client: Client, entry: dict[str, Any], node_type: str = "SaveImage") -> list[Image.Image]:
    """What nodes of a type have shown."""
    nodes = [node for node, content in entry["prompt"][2].items() if content["class_type"] == node_type]
    shown = [image for node in nodes for image in entry["outputs"].get(node, {}).get("images", [])]
    return [Image.open(io.BytesIO(client.view(image))).convert("RGB") for image in shown]


@pytest.mark.parametrize("nodes_2", [False, True], ids=["classic canvas", "Nodes 2.0"])
def test_every_workflow_opens_whole_and_says_what_its_api_twin_says(
    desk: Page, faults: list[str], nodes_2: bool
) -> None:
    for name in SHIPPED:
        faults.clear()
        opened(desk, name, nodes_2)
        desk.wait_for_timeout(SETTLES)
        unknown = "node => !node.isSubgraphNode?.() && !window.LiteGraph.registered_node_types[node.type]"
        assert desk.evaluate(f"() => window.app.graph.nodes.filter({unknown}).map(node => node.type)") == [], name
        said = desk.evaluate("async () => (await window.app.graphToPrompt()).output")
        twin = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
        assert meaning(said) == meaning(twin), name
        assert overlapping(desk) == [], name
        assert faults == [], name


def overlapping(page: Page) -> list[tuple[str, str, int]]:
    """Pairs of nodes of which one covers a part of the other, and how many pixels high that is."""
    boxes = page.evaluate(
        "() => window.app.graph.nodes.map(node => [`${node.id}: ${node.title}`, ...node.getBounding()])"
    )
    return [
        (one[0], other[0], round(min(one[2] + one[4], other[2] + other[4]) - max(one[2], other[2])))
        for number, one in enumerate(boxes)
        for other in boxes[number + 1 :]
        if all(one[i] < other[i] + other[i + 2] and other[i] < one[i] + one[i + 2] for i in (1, 2))
    ]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_workflow_has_a_small_thumbnail(name: str) -> None:
    thumbnail = WORKFLOWS / f"{name}.jpg"
    with Image.open(thumbnail) as picture:
        assert picture.format == "JPEG" and min(picture.size) >= 256
    assert thumbnail.stat().st_size <= LARGEST_THUMBNAIL


def test_several_photos_become_one_word(desk: Page, client: Client, server: Server) -> None:
    opened(desk, "several_photos")
    learned = server.said().count(LEARNED)
    entry = run(client, desk)
    (batch,) = [content for content in entry["prompt"][2].values() if content["class_type"] == "BatchImagesNode"]
    assert len(batch["inputs"]) == 3 and server.said().count(LEARNED) == learned + 1
    assert [picture.size for picture in pictures(client, entry)] == [(SIDE, SIDE)]


def test_five_models_draw_one_prompt_as_a_strip(desk: Page, client: Client, server: Server) -> None:
    opened(desk, "refinement_strip")
    recognized = server.said().count(RECOGNIZED)
    (strip,) = pictures(client, run(client, desk))
    assert strip.size == (5 * SIDE + 4 * 4, SIDE)
    assert server.said().count(RECOGNIZED) == recognized + 5


def test_a_style_is_learned_from_one_drawing(desk: Page, client: Client, server: Server) -> None:
    opened(desk, "art_style")
    recognized = server.said().count(RECOGNIZED)
    assert len(pictures(client, run(client, desk))) == 1
    assert server.said().count(RECOGNIZED) == recognized + 1


@pytest.mark.parametrize("kind", [kind for kind in SIBLINGS if kind not in READS_MANY], ids=lambda kind: kind.name)
def test_a_photo_is_learned_drawn_and_kept_without_a_domain_file(
    desk: Page, client: Client, server: Server, kind: type[Sibling]
) -> None:
    opened(desk, kind.name)
    learned, recognized = server.said().count(LEARNED), server.said().count(RECOGNIZED)
    entry = run(client, desk)
    assert [picture.size for picture in pictures(client, entry)] == [(SIDE, SIDE)]
    assert server.said().count(LEARNED) == learned + 1 and server.said().count(RECOGNIZED) == recognized + 1
    (saved,) = [node for node, content in entry["prompt"][2].items() if content["class_type"] == "E4TSaveConcept"]
    name = entry["prompt"][2][saved]["inputs"]["name"]
    # Another test of this server may have saved one of that name: this one then has a number.
    said = re.match(rf"Saved as ({name}(?:_\d+)?\.safetensors) \(", entry["outputs"][saved]["text"][0])
    assert said and (server.base / "models" / "embeddings" / "e4t" / said[1]).is_file()


def test_a_word_is_known_at_once_and_kept_as_a_recipe(desk: Page, client: Client, server: Server) -> None:
    opened(desk, "hypernetwork")
    recognized = server.said().count(RECOGNIZED)
    # Not quickened: no step is taken.
    set_widgets(desk, {"KSampler": QUICK["KSampler"], "EmptyLatentImage": QUICK["EmptyLatentImage"]})
    entry = ran(client, desk, set(json.loads(client.get("/history"))))
    assert_apart(desk)
    assert len(pictures(client, entry)) == 1 and server.said().count(RECOGNIZED) == recognized + 1
    told = {
        content["class_type"]: entry["outputs"][node]["text"]
        for node, content in entry["prompt"][2].items()
        if content["class_type"].startswith("E4T") and "text" in entry["outputs"].get(node, {})
    }
    assert told["E4THyperNetwork"][0].startswith("S* is the encoder's first answer (0 steps: nothing is tuned)")
    (kept,) = re.findall(r"^Saved as (my_hypernetwork\S*\.safetensors) \(", told["E4TSaveConcept"][0])
    assert (server.base / "models" / "embeddings" / "e4t" / kept).stat().st_size < 200_000


def test_a_concept_is_drawn_with_a_lora_and_a_controlnet(desk: Page, client: Client) -> None:
    opened(desk, "lora_controlnet")
    (with_both,) = pictures(client, run(client, desk))
    desk.evaluate(
        "() => { const node = window.app.graph.nodes.find(node => node.type === 'ControlNetApplyAdvanced');"
        " node.widgets.find(widget => widget.name === 'strength').value = 0 }"
    )
    (without,) = pictures(client, run(client, desk))
    assert not np.array_equal(np.asarray(with_both), np.asarray(without))


def test_a_face_is_learned_where_the_stock_nodes_find_it(desk: Page, client: Client) -> None:
    opened(desk, "face_mask")
    entry = run(client, desk)
    (mask,) = pictures(client, entry, "MaskPreview")
    marked = np.asarray(mask.convert("L")) > 127
    rows, columns = marked.shape
    assert marked[rows // 2, columns // 2] and not marked[[0, -1]].any() and not marked[:, [0, -1]].any()
    assert len(pictures(client, entry)) == 1


def test_two_exported_people_are_drawn_by_stock_nodes(desk: Page, client: Client) -> None:
    opened(desk, "two_people_stock")
    run(client, desk)
    # As a person does: R, then the gray nodes are switched on, and the learning ones off.
    desk.evaluate("async () => { await window.app.refreshComboInNodes() }")
    desk.evaluate(
        "() => { for (const node of window.app.graph.nodes) if (node.type !== 'CheckpointLoaderSimple')"
        " node.mode = node.mode === 2 ? 0 : 2 }"
    )
    entry = run(client, desk)
    assert not any(content["class_type"].startswith("E4T") for content in entry["prompt"][2].values())
    assert len(pictures(client, entry)) == 1


def test_an_app_takes_a_photo_and_gives_pictures(desk: Page, client: Client) -> None:
    opened(desk, "photo_to_pictures")
    set_widgets(desk, QUICK)
    labels = desk.get_by_test_id("builder-widget-label")
    labels.first.wait_for()
    assert labels.all_inner_texts() == ["Photo", "Prompt (S* is the person)", "Pictures", "Seed"]
    before = set(json.loads(client.get("/history")))
    desk.get_by_role("button", name="Run", exact=True).click()
    deadline = time.monotonic() + PATIENCE
    while not (new := set(json.loads(client.get("/history"))) - before):
        assert time.monotonic() < deadline, "the run never ended"
        time.sleep(0.2)
    entry = client.history(new.pop())
    assert entry["status"]["status_str"] == "success" and len(pictures(client, entry)) == 4
    # What is drawn stands in the middle of the form.
    desk.get_by_test_id("linear-outputs").locator("img").first.wait_for()


def test_the_blueprint_is_found_by_its_name_and_learns(desk: Page, client: Client, faults: list[str]) -> None:
    opened(desk, "one_photo")
    faults.clear()
    desk.evaluate("() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    desk.keyboard.type(BLUEPRINT)
    desk.get_by_text(BLUEPRINT).first.wait_for()
    desk.keyboard.press("Enter")
    desk.wait_for_function("() => window.app.graph.nodes.some(node => node.isSubgraphNode?.())")
    # In place of the two nodes that the workflow has.
    desk.evaluate(
        "() => { const graph = window.app.graph, of = type => graph.nodes.find(node => node.type === type);"
        " const subgraph = graph.nodes.find(node => node.isSubgraphNode?.()), old = of('E4TPersonalize');"
        " const connect = (from, name) => from.node.connect(from.slot, subgraph, subgraph.findInputSlot(name));"
        " const source = name => { const link = graph.links.get(old.inputs[old.findInputSlot(name)].link);"
        "   return { node: graph.getNodeById(link.origin_id), slot: link.origin_slot } };"
        " for (const name of ['model', 'clip', 'vae', 'image', 'mask']) connect(source(name), name);"
        " for (const slot of [0, 1]) for (const id of [...old.outputs[slot].links]) { const link = graph.links.get(id);"
        "   subgraph.connect(slot, graph.getNodeById(link.target_id), link.target_slot) }"
        " graph.remove(old); graph.remove(of('E4TLoadDomain')) }"
    )
    # The page puts the node where there is no room for it.
    set_widgets(desk, QUICK)
    entry = ran(client, desk, set(json.loads(client.get("/history"))))
    learning = [node for node, content in entry["prompt"][2].items() if content["class_type"] == "E4TPersonalize"]
    assert [":" in node for node in learning] == [True] and len(pictures(client, entry)) == 1
    assert faults == []


def test_the_blueprint_is_no_workflow_of_its_own() -> None:
    blueprint = json.loads((REPOSITORY / "subgraphs" / f"{BLUEPRINT}.json").read_text(encoding="utf-8"))
    (node,) = blueprint["nodes"]
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    assert node["type"] == subgraph["id"] and subgraph["name"] == BLUEPRINT


def meaning(prompt: dict[str, dict]) -> dict[str, dict]:
    """Nodes, links and values, by node id, in one form."""
    return {
        node: {
            "class_type": content["class_type"],
            **{name: value for name, value in content["inputs"].items() if name not in ONLY_IN_THE_PAGE},
        }
        for node, content in prompt.items()
    }
