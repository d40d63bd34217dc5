"""With ComfyUI's language set to Chinese, our nodes, their help and their panels are Chinese, in both node modes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from in_browser import PATIENCE, needs_browser, new_page, open_workflow, wait_until_started

from devtools.comfyui_server import Server
from devtools.places import REPOSITORY

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = needs_browser

NODE = "E4TPersonalize"
# What the node's frame, slots and widgets are called on the page.
LABELS = """type => {
  const node = window.app.graph.nodes.find(node => node.type === type);
  const slots = [...node.inputs, ...node.outputs];
  return {
    title: node.title,
    slots: Object.fromEntries(slots.map(slot => [slot.name, slot.label ?? slot.localized_name])),
    widgets: Object.fromEntries(node.widgets.filter(w => w.name !== 'e4t_panel').map(w => [w.name, w.label])),
  };
}"""
SEEN = """type => {
  const node = window.app.graph.nodes.find(node => node.type === type);
  return document.querySelector(`[data-node-id='${node.id}']`)?.innerText ?? '';
}"""
MARK = """type => window.app.graph.nodes.find(node => node.type === type)
  .widgets.find(widget => widget.name === 'e4t_panel')?.element.querySelector('[role=status]')?.textContent ?? ''"""
WRITE = """() => { for (const node of window.app.graph.nodes) {
  if (node.type === 'CLIPTextEncode') node.widgets[0].value = 'a cat';
} }"""


def texts(name: str) -> dict:
    return json.loads((REPOSITORY / "locales" / "zh" / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=[True, False], ids=["Nodes 2.0", "classic canvas"])
def page(server: Server, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """ComfyUI's page in Chinese, with the shipped workflow."""
    context = browser.new_context()
    page = new_page(context, server)
    choose = "([name, value]) => window.app.extensionManager.setting.set(name, value)"
    page.evaluate(choose, ["Comfy.VueNodes.Enabled", request.param])
    page.evaluate(choose, ["Comfy.Locale", "zh"])
    page.reload(timeout=PATIENCE * 1000)
    wait_until_started(page)
    open_workflow(page)
    yield page
    # It is a setting of the server's, which other tests use as well.
    page.evaluate(choose, ["Comfy.Locale", "en"])
    context.close()


def test_title_inputs_and_outputs_of_a_node_are_chinese(page: Page) -> None:
    wanted, seen = texts("nodeDefs.json")[NODE], page.evaluate(LABELS, NODE)
    assert seen["title"] == wanted["display_name"]
    names = {name: said["name"] for name, said in wanted["inputs"].items()}
    # Beside them are widgets that the page makes: what becomes of the seed, and a text.
    widgets = {name: label for name, label in seen["widgets"].items() if name in names}
    assert widgets == {name: names[name] for name in widgets} and len(widgets) >= 5
    outputs = {"MODEL", "CLIP", "LOSS_MAP", "E4T_CONCEPT"}
    assert {name: label for name, label in seen["slots"].items() if name not in outputs} == {
        name: names[name] for name in seen["slots"] if name not in outputs
    }
    assert seen["slots"]["E4T_CONCEPT"] == texts("main.json")["dataTypes"]["E4T_CONCEPT"]
    if page.evaluate("() => Boolean(window.LiteGraph.vueNodesMode)"):
        shown = page.evaluate(SEEN, NODE)
        assert [name for name in (wanted["display_name"], names["trigger"], names["mask"]) if name not in shown] == []


def test_the_panels_are_chinese(page: Page) -> None:
    page.evaluate(WRITE)
    said = texts("main.json")["e4t"][
        "{trigger} is in no prompt behind this node: write it into one, or it is not drawn."
    ]
    deadline = time.monotonic() + PATIENCE
    while (seen := page.evaluate(MARK, NODE)) != said.replace("{trigger}", "S*"):
        assert time.monotonic() < deadline, f"the mark said {seen!r}"
        page.wait_for_timeout(200)


@pytest.mark.parametrize(("node", "language"), [(NODE, "zh"), ("E4TMixConcepts", "en")])
def test_help_is_chinese_where_there_is_a_page_and_english_elsewhere(page: Page, node: str, language: str) -> None:
    page.evaluate(
        "type => { const { graph, canvas } = window.app; let node = graph.nodes.find(node => node.type === type);"
        " if (!node) { node = window.LiteGraph.createNode(type); graph.add(node) }"
        " canvas.ds.scale = 1; canvas.centerOnNode(node); canvas.selectItems([node]) }",
        node,
    )
    page.get_by_test_id("info-button").dispatch_event("click")
    folder = REPOSITORY / "web" / "docs"
    path = folder / node / "zh.md" if language == "zh" else folder / f"{node}.md"
    heading = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    page.get_by_role("heading", name=heading, level=1).first.wait_for(state="attached")
