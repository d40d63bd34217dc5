"""Prompts complete triggers and saved concepts' names: on the classic canvas and in Nodes 2.0, beside other packs' lists."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from in_browser import PATIENCE, needs_browser, new_page, open_workflow, shipped_workflow

from devtools.comfyui_client import Client
from devtools.comfyui_server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = needs_browser

TOO_LONG = 60.0
NAME = "completed_face"
# What is offered, and which of it is chosen.
OFFERED = """() => [...document.querySelectorAll('.e4t-choice')].map(
  line => (line.getAttribute('aria-selected') === 'true' ? '>' : '') + line.textContent)"""
# The prompt's text, as the node has it.
TEXT = """() => window.app.graph.nodes.find(
  node => node.type === 'CLIPTextEncode' && node.title !== 'Negative prompt').widgets[0].value"""
# Puts the caret into an empty prompt that is as large as one works at it.
BEGIN = """() => {
  const { canvas, graph } = window.app;
  const node = graph.nodes.find(node => node.type === 'CLIPTextEncode' && node.title !== 'Negative prompt');
  node.widgets[0].value = '';
  canvas.ds.scale = 1;
  canvas.centerOnNode(node);
  canvas.setDirty(true, true);
  return String(node.id);
}"""
# Another pack's list, as the widely used ones are made: listeners of its own on the text, a list below the caret, Tab and
# Enter accept. It opens at every letter.
OTHER = """() => {
  const text = document.activeElement;
  const list = document.createElement('div');
  list.className = 'other-autocomplete';
  list.style.cssText = 'position: fixed; left: 10px; top: 10px; z-index: 9999';
  list.textContent = 'sunset';
  const ends = new AbortController();
  window.endOther = () => { ends.abort(); list.remove(); };
  text.addEventListener('keydown', event => {
    if (list.isConnected && (event.key === 'Tab' || event.key === 'Enter')) {
      event.preventDefault();
      list.remove();
      document.execCommand('insertText', false, 'unset');
    }
  }, ends);
  text.addEventListener('keyup', event => { if (event.key.length === 1) document.body.append(list) }, ends);
}"""


@pytest.fixture(scope="module", params=[True, False], ids=["Nodes 2.0", "classic canvas"])
def opened(server: Server, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """One page for all tests of a node mode, in which a workflow with the trigger S* is open; a concept was saved before."""
    workflow = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "miniworld.safetensors"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "mini_photo.png"}},
        "3": {"class_type": "E4TLoadDomain", "inputs": {"domain_name": "mini_faces.safetensors"}},
        "4": {
            "class_type": "E4TPersonalize",
            "inputs": {
                "model": ["1", 0],
                "clip": ["1", 1],
                "vae": ["1", 2],
                "image": ["2", 0],
                "domain": ["3", 0],
                "trigger": "S*",
                "seed": 7700,
            },
        },
        "5": {
            "class_type": "E4TSaveConcept",
            "inputs": {"concept": ["4", 2], "name": NAME, "keeps": "recipe", "overwrite": True},
        },
    }
    run = Client(server.client.host, server.client.port).run(workflow)
    assert run.status == "success", run.error
    context = browser.new_context()
    page = new_page(context, server)
    page.evaluate("on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", request.param)
    open_workflow(page, workflow=shipped_workflow("one_photo"))
    yield page
    context.close()


@pytest.fixture
def page(opened: Page) -> Page:
    """The caret stands in an empty prompt."""
    node = opened.evaluate(BEGIN)
    if opened.evaluate("() => Boolean(window.LiteGraph.vueNodesMode)"):
        text = opened.locator(f"[data-node-id='{node}'] textarea")
    else:
        text = opened.locator("textarea.comfy-multiline-input").filter(visible=True).first
    text.click()
    opened.wait_for_function("() => document.activeElement.tagName === 'TEXTAREA'")
    opened.keyboard.press("Control+a")
    opened.keyboard.press("Delete")
    return opened


def offered(page: Page, wanted: list[str]) -> None:
    """Waits until exactly this is offered."""
    deadline = time.monotonic() + TOO_LONG
    while (seen := page.evaluate(OFFERED)) != wanted:
        assert time.monotonic() < deadline, f"{wanted} was never offered, but {seen}"
        page.wait_for_timeout(50)


def holds(page: Page, wanted: str) -> None:
    """Waits until the node has a text."""
    deadline = time.monotonic() + TOO_LONG
    while (seen := page.evaluate(TEXT)) != wanted:
        assert time.monotonic() < deadline, f"the node never had {wanted!r}, but {seen!r}"
        page.wait_for_timeout(50)


@pytest.mark.parametrize("key", ["Tab", "Enter"])
def test_what_begins_a_trigger_is_completed(page: Page, key: str) -> None:
    page.keyboard.type("a photo of (S")
    offered(page, [">S*"])
    page.keyboard.press(key)
    holds(page, "a photo of (S*")
    offered(page, [])
    page.keyboard.type(":1.2), smiling")
    holds(page, "a photo of (S*:1.2), smiling")


def test_one_undo_takes_it_back(page: Page) -> None:
    page.keyboard.type("a photo of S")
    offered(page, [">S*"])
    page.keyboard.press("Tab")
    holds(page, "a photo of S*")
    page.keyboard.press("Control+z")
    page.wait_for_function("() => !document.activeElement.value.endsWith('*')")


def test_with_other_capitals_nothing_is_chosen_and_no_key_is_taken(page: Page) -> None:
    page.keyboard.type("a s")
    offered(page, ["S*"])
    page.keyboard.press("Enter")
    page.keyboard.type("mile, s")
    offered(page, ["S*"])
    holds(page, "a s\nmile, s")
    page.keyboard.press("ArrowDown")
    offered(page, [">S*"])
    page.keyboard.press("Enter")
    holds(page, "a s\nmile, S*")


def test_a_saved_concept_s_name_is_completed(page: Page) -> None:
    page.keyboard.type("em")
    offered(page, [])
    page.keyboard.type("bedding:e4t/comp")
    offered(page, [f">embedding:e4t/{NAME}"])
    page.keyboard.press("Tab")
    holds(page, f"embedding:e4t/{NAME}")


def test_other_words_open_nothing_and_every_key_is_the_text_s(page: Page) -> None:
    page.keyboard.type("cats")
    offered(page, [])
    page.keyboard.press("Enter")
    page.keyboard.type("S*")
    offered(page, [])
    page.keyboard.press("Enter")
    page.keyboard.type("x")
    holds(page, "cats\nS*\nx")
    page.keyboard.type(" S")
    offered(page, [">S*"])
    # Back into a word that is there already.
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    offered(page, [])


def test_escape_closes_and_enter_is_a_line_again(page: Page) -> None:
    page.keyboard.type("a S")
    offered(page, [">S*"])
    page.keyboard.press("Escape")
    offered(page, [])
    assert page.evaluate("() => document.activeElement.tagName") == "TEXTAREA"
    page.keyboard.press("Enter")
    holds(page, "a S\n")


def test_a_click_completes_and_a_click_elsewhere_closes(page: Page) -> None:
    page.keyboard.type("a S")
    offered(page, [">S*"])
    page.locator(".e4t-choice").click()
    holds(page, "a S*")
    page.keyboard.type(" and S")
    offered(page, [">S*"])
    page.mouse.click(5, 300)
    offered(page, [])
    holds(page, "a S* and S")


def test_the_list_is_at_the_caret_s_line(page: Page) -> None:
    page.keyboard.type("one\ntwo\na photo of S")
    offered(page, [">S*"])
    box = page.locator(".e4t-completion").bounding_box()
    text = page.evaluate("() => document.activeElement.getBoundingClientRect().toJSON()")
    assert box is not None
    assert text["left"] + 20 < box["x"] < text["right"]
    assert text["top"] - box["height"] < box["y"] + box["height"] < text["bottom"]


def test_half_a_word_of_an_input_method_is_left_alone(page: Page) -> None:
    keys = page.context.new_cdp_session(page)
    keys.send("Input.imeSetComposition", {"text": "S", "selectionStart": 1, "selectionEnd": 1})
    page.wait_for_function("() => document.activeElement.value === 'S'")
    offered(page, [])
    keys.send("Input.insertText", {"text": "照片"})
    page.wait_for_function("() => document.activeElement.value === '照片'")
    # Chinese is written without spaces.
    page.keyboard.type("S")
    offered(page, [">S*"])
    page.keyboard.press("Tab")
    holds(page, "照片S*")


def test_another_pack_s_list_keeps_its_keys_and_ours_is_for_the_mouse(page: Page) -> None:
    page.evaluate(OTHER)
    try:
        page.keyboard.type("S")
        offered(page, ["S*"])
        page.keyboard.press("Tab")
        # Theirs, once: ours put nothing beside it.
        holds(page, "Sunset")
        page.keyboard.type(", S")
        offered(page, ["S*"])
        page.locator(".e4t-choice").click()
        holds(page, "Sunset, S*")
    finally:
        page.evaluate("() => window.endOther()")


def test_a_trigger_that_is_renamed_is_known_at_once(page: Page) -> None:
    rename = (
        "trigger => { const node = window.app.graph.nodes.find(node => node.type === 'E4TPersonalize');"
        " node.widgets.find(widget => widget.name === 'trigger').value = trigger }"
    )
    page.evaluate(rename, "anna")
    try:
        page.keyboard.type("a photo of an")
        offered(page, [">anna"])
        page.keyboard.type("na")
        offered(page, [])
    finally:
        page.evaluate(rename, "S*")


def test_a_concept_that_is_saved_meanwhile_is_known(page: Page, server: Server) -> None:
    folder = server.base / "models" / "embeddings" / "e4t"
    (folder / "later.safetensors").write_bytes((folder / f"{NAME}.safetensors").read_bytes())
    try:
        # As a person does: R.
        page.evaluate("async () => { await window.app.refreshComboInNodes() }")
        deadline = time.monotonic() + PATIENCE
        page.keyboard.type("embedding:e4t/lat")
        while page.evaluate(OFFERED) != [">embedding:e4t/later"]:
            assert time.monotonic() < deadline
            page.wait_for_timeout(200)
            page.keyboard.press("Backspace")
            page.keyboard.type("t")
    finally:
        (folder / "later.safetensors").unlink()
