"""The crop editor on E4T Personalize, in ComfyUI's own page: drawn by mouse, wheel and keys, kept, and learned."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from in_browser import load, needs_browser, new_page, open_workflow, ran, shipped_workflow
from PIL import Image

from devtools.comfyui_client import Client
from devtools.comfyui_server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = needs_browser

TOO_LONG = 60.0
WIDTH, HEIGHT = 240, 160
# What the editor shows, where it is on the screen, and what the node would keep.
EDITOR = """() => {
  const node = window.app.graph.nodes.find(node => node.type === 'E4TPersonalize');
  const widget = name => node.widgets.find(widget => widget.name === name);
  const place = widget('e4t_panel')?.element.querySelector('.e4t-crop');
  const stage = place?.querySelector('.e4t-stage');
  return {
    open: Boolean(place), square: widget('square').value, told: place?.querySelector('.e4t-count').textContent ?? '',
    photo: stage && !stage.hidden ? place.querySelector('img').getBoundingClientRect().toJSON() : null,
    frame: stage && !stage.hidden ? place.querySelector('.e4t-square').getBoundingClientRect().toJSON() : null,
    automatic: place ? !place.querySelector('button').hidden : false,
    zoom: window.app.canvas.ds.scale, at: [...window.app.canvas.ds.offset], node: [...node.pos],
  };
}"""
PRESS = """() => {
  const node = window.app.graph.nodes.find(node => node.type === 'E4TPersonalize');
  node.widgets.find(widget => widget.name === 'crop editor').callback();
}"""
# The node in the middle of the screen, with nothing over it.
SHOW = """() => {
  const { canvas, graph } = window.app; const node = graph.nodes.find(node => node.type === 'E4TPersonalize');
  canvas.ds.scale = 0.8; canvas.ds.offset = [520 - node.pos[0], 90 - node.pos[1]]; canvas.setDirty(true, true);
}"""


@pytest.fixture(scope="module", params=[True, False], ids=["Nodes 2.0", "classic canvas"])
def page(server: Server, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """One page for all tests of a node mode."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = new_page(context, server)
    page.evaluate("on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", request.param)
    yield page
    context.close()


@pytest.fixture
def workflow(server: Server) -> dict[str, Any]:
    """The shipped workflow with a photo that is wider than high."""
    gradient = Image.linear_gradient("L").resize((WIDTH, HEIGHT))
    Image.merge("RGB", (gradient, gradient.transpose(Image.Transpose.FLIP_LEFT_RIGHT), gradient.rotate(180))).save(
        server.base / "input" / "wide.png"
    )
    made = shipped_workflow("one_photo", sampling_steps=1)
    for node in made["nodes"]:
        if node["type"] == "LoadImage":
            node["widgets_values"][0] = "wide.png"
    return made


def until(page: Page, wanted: Any) -> dict[str, Any]:
    """What the editor shows, once it is so."""
    deadline = time.monotonic() + TOO_LONG
    while not wanted(seen := page.evaluate(EDITOR)):
        assert time.monotonic() < deadline, f"it never came to that: {seen}"
        page.wait_for_timeout(100)
    return seen


def opened(page: Page, workflow: dict[str, Any]) -> dict[str, Any]:
    open_workflow(page, workflow=workflow)
    page.evaluate(SHOW)
    assert not page.evaluate(EDITOR)["open"], "it is open before anyone asked"
    page.evaluate(PRESS)
    until(page, lambda seen: seen["photo"] and seen["photo"]["width"] > 50)
    page.wait_for_timeout(500)
    return page.evaluate(EDITOR)


def square(seen: dict[str, Any]) -> tuple[int, int, int]:
    left, top, side = (int(number) for number in seen["square"].split(","))
    return left, top, side


def test_a_square_is_drawn_by_mouse_wheel_and_keys_and_automatic_takes_it_back(page: Page, workflow: dict) -> None:
    before = opened(page, workflow)
    assert before["square"] == "" and not before["automatic"] and "the node chooses" in before["told"]
    photo = before["photo"]
    scale = photo["width"] / WIDTH
    assert photo["height"] / HEIGHT == pytest.approx(scale, rel=0.02)
    middle = (photo["x"] + photo["width"] / 2, photo["y"] + photo["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 10 * scale, middle[1], steps=4)
    page.mouse.up()
    moved = until(page, lambda seen: seen["square"])
    assert square(moved)[0] == pytest.approx(50, abs=2) and square(moved)[1:] == (0, HEIGHT)
    # Beyond the photo's end it stops there.
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 300 * scale, middle[1] + 50, steps=4)
    page.mouse.up()
    assert square(until(page, lambda seen: square(seen)[0] > 60)) == (WIDTH - HEIGHT, 0, HEIGHT)
    page.mouse.move(middle[0] + 40 * scale, middle[1])
    for _ in range(5):
        page.mouse.wheel(0, -100)
        page.wait_for_timeout(50)
    smaller = until(page, lambda seen: square(seen)[2] < 0.75 * HEIGHT)
    left, top, side = square(smaller)
    assert left + side / 2 == pytest.approx(WIDTH - HEIGHT / 2, abs=3) and top + side / 2 == pytest.approx(80, abs=3)
    frame = smaller["frame"]
    assert frame["x"] == pytest.approx(smaller["photo"]["x"] + left * scale, abs=2)
    assert frame["width"] == pytest.approx(side * scale, abs=2)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("+")
    keyed = until(page, lambda seen: square(seen)[2] > side)
    assert f"of {WIDTH} × {HEIGHT}" in keyed["told"]
    # None of it moved or zoomed the canvas, or dragged the node.
    assert all(keyed[what] == before[what] for what in ("zoom", "at", "node"))
    page.evaluate(
        "() => window.app.graph.nodes.find(node => node.type === 'E4TPersonalize').widgets"
        ".find(widget => widget.name === 'e4t_panel').element.querySelector('.e4t-crop button').click()"
    )
    again = until(page, lambda seen: seen["square"] == "")
    assert not again["automatic"] and "the node chooses" in again["told"]
    page.evaluate(PRESS)
    until(page, lambda seen: not seen["open"])


def test_what_is_drawn_is_saved_with_the_workflow_and_said_to_the_server(
    page: Page, server: Server, workflow: dict
) -> None:
    photo = opened(page, workflow)["photo"]
    page.mouse.click(photo["x"] + 5, photo["y"] + photo["height"] / 2)
    drawn = until(page, lambda seen: seen["square"])
    assert square(drawn) == (0, 0, HEIGHT)
    saved = page.evaluate("() => window.app.graph.serialize()")
    said = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    learner = next(content["inputs"] for content in said.values() if content["class_type"] == "E4TPersonalize")
    assert learner["square"] == drawn["square"] and "crop editor" not in learner
    load(page, shipped_workflow("textual_inversion"), "other")
    load(page, saved, "again")
    page.wait_for_timeout(500)
    seen = page.evaluate(EDITOR)
    assert seen["square"] == drawn["square"] and not seen["open"]
    values = next(node["widgets_values"] for node in saved["nodes"] if node["type"] == "E4TPersonalize")
    assert values == [*values[:-1], drawn["square"]] and values[:3] == ["S*", 0, "fixed"]
    # The server learns it, and refuses it for another photo.
    client = Client(server.client.host, server.client.port)
    entry = ran(client, page, set(json.loads(client.get("/history"))))
    assert "learned in" in "\n".join(entry["outputs"]["4"]["text"])
    Image.new("RGB", (100, 100), "white").save(server.base / "input" / "small.png")
    page.evaluate(SHOW)
    page.evaluate(PRESS)
    page.evaluate(
        "() => { window.app.graph.nodes.find(node => node.type === 'LoadImage').widgets[0].value = 'small.png' }"
    )
    told = until(page, lambda seen: "does not lie in this photo" in seen["told"])
    assert told["automatic"]


def test_without_a_photo_it_says_what_to_do(page: Page, workflow: dict) -> None:
    open_workflow(page, workflow=workflow)
    page.evaluate(
        "() => { const node = window.app.graph.nodes.find(node => node.type === 'E4TPersonalize');"
        " node.disconnectInput(node.inputs.findIndex(input => input.name === 'image')) }"
    )
    page.evaluate(PRESS)
    seen = until(page, lambda seen: seen["open"] and seen["told"])
    assert seen["photo"] is None and "Load Image" in seen["told"] and not seen["automatic"]
