"""Shipped workflows in ComfyUI's own page, as a person runs them (see `test_workflows` too): pressing Run twice learns once."""

from __future__ import annotations

import io
import json
import time
from typing import TYPE_CHECKING

import pytest
from in_browser import PATIENCE, needs_browser, open_workflow, ran
from PIL import Image, ImageOps

from devtools.comfyui_client import Client
from devtools.comfyui_server import Server
from devtools.places import WORKFLOWS
from devtools.serve import TEMPLATE

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = needs_browser


def test_the_link_that_serve_prints_opens_the_shipped_workflow(page: Page, server: Server) -> None:
    page.goto(f"{server.client.url}/{TEMPLATE}", timeout=PATIENCE * 1000)
    page.wait_for_function("() => window.app?.graph?.nodes.some(node => node.type === 'E4TPersonalize')")
    assert page.evaluate("() => window.app.graph.nodes.length") == len(
        json.loads((WORKFLOWS / "one_photo.json").read_text(encoding="utf-8"))["nodes"]
    )


def test_pressing_run_twice_with_nothing_touched_tunes_once(page: Page, server: Server) -> None:
    open_workflow(page, sampling_steps=2)
    client = Client(server.client.host, server.client.port)
    before, learned = set(json.loads(client.get("/history"))), server.said().count(" learned in ")
    for presses in (1, 2):
        page.get_by_test_id("queue-button").click()
        deadline = time.monotonic() + PATIENCE
        while len(new := set(json.loads(client.get("/history"))) - before) < presses:
            assert time.monotonic() < deadline, f"only {len(new)} of {presses} runs ended"
            time.sleep(0.5)
    statuses = [client.history(prompt)["status"]["status_str"] for prompt in new]
    assert statuses == ["success", "success"]
    assert server.said().count(" learned in ") == learned + 1


@pytest.mark.parametrize("nodes_2", [True, False], ids=["Nodes 2.0", "classic canvas"])
def test_the_lines_of_a_text_stay_lines_on_the_node(page: Page, server: Server, nodes_2: bool) -> None:
    page.evaluate("on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", nodes_2)
    open_workflow(page, sampling_steps=2, name="save_and_reuse")
    # A name that nothing was saved as, because a node that does not run shows no text; and what is told in two lines.
    page.evaluate(
        "values => { const node = window.app.graph.nodes.find(node => node.type === 'E4TSaveConcept');"
        " for (const widget of node.widgets) if (widget.name in values) widget.value = values[widget.name] }",
        {"name": f"lines_{int(nodes_2)}", "keeps": "recipe"},
    )
    client = Client(server.client.host, server.client.port)
    entry = ran(client, page, set(json.loads(client.get("/history"))))
    saver = next(node for node, content in entry["prompt"][2].items() if content["class_type"] == "E4TSaveConcept")
    lines = entry["outputs"][saver]["text"]
    assert len(lines) > 1, "there is one line only, so this proves nothing"
    place = ".comfy-markdown-content" if nodes_2 else ".dom-widget span"
    shown = page.locator(place).filter(has_text=lines[0]).first
    shown.wait_for(state="attached")
    assert [line.strip() for line in shown.inner_text().splitlines() if line.strip()] == lines


def test_what_was_saved_is_in_the_list_after_a_refresh_and_is_drawn(page: Page, server: Server) -> None:
    open_workflow(page, sampling_steps=2, name="save_and_reuse")
    client = Client(server.client.host, server.client.port)
    history = lambda: set(json.loads(client.get("/history")))
    ran(client, page, history())
    # As a person does: R, then the gray nodes are switched on and the learning ones off.
    page.evaluate("async () => { await window.app.refreshComboInNodes() }")
    choices = page.evaluate(
        "() => { const node = window.app.graph.nodes.find(node => node.type === 'E4TLoadConcept');"
        " return node.widgets.find(widget => widget.name === 'concept_name').options.values }"
    )
    assert "my_face" in choices
    page.evaluate(
        "() => { for (const node of window.app.graph.nodes) node.mode ="
        " node.mode === 2 || node.type === 'CheckpointLoaderSimple' ? 0 : 2 }"
    )
    entry = ran(client, page, history())
    said = " ".join(line for output in entry["outputs"].values() for line in output.get("text", []))
    assert "S*: my_face (e4t, domain mini_faces, on miniworld.safetensors)" in said
    assert any(output.get("images") for output in entry["outputs"].values())


@pytest.fixture
def second_photo(server: Server) -> None:
    """Somebody else: the first one in a mirror."""
    folder = server.base / "input"
    with Image.open(folder / "mini_photo.png") as photo:
        ImageOps.mirror(photo.convert("RGB")).save(folder / "mini_photo_2.png")


@pytest.mark.usefixtures("second_photo")
def test_two_people_are_drawn_in_one_picture(page: Page, server: Server) -> None:
    open_workflow(page, sampling_steps=2, name="two_people")
    client = Client(server.client.host, server.client.port)
    entry = ran(client, page, set(json.loads(client.get("/history"))))
    (image,) = [image for output in entry["outputs"].values() for image in output.get("images", [])]
    with Image.open(io.BytesIO(client.view(image))) as picture:
        assert picture.size == (256, 128)


@pytest.mark.usefixtures("second_photo")
def test_two_faces_are_mixed(page: Page, server: Server) -> None:
    open_workflow(page, sampling_steps=2, name="mix_two_faces")
    client = Client(server.client.host, server.client.port)
    entry = ran(client, page, set(json.loads(client.get("/history"))))
    said = " ".join(line for output in entry["outputs"].values() for line in output.get("text", []))
    assert "S* = 50 % A* + 50 % B*" in said
    assert any(output.get("images") for output in entry["outputs"].values())
