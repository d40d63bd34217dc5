"""The panels on our nodes, in ComfyUI's own page: on the classic canvas and in Nodes 2.0."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from in_browser import (
    PATIENCE,
    bring_near,
    load,
    needs_browser,
    new_page,
    open_workflow,
    ran,
    shipped_workflow,
    wait_until_started,
)
from safetensors import safe_open
from safetensors.torch import save_file

from devtools.comfyui_client import Client
from devtools.comfyui_server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = needs_browser

TOO_LONG = 60.0
"""Seconds after which a panel has failed; a few are enough unless the machine is busy."""
# A node's panel: what is in it and whether it is seen, wherever the page has put it.
PANEL = """type => {
  const all = graph => graph.nodes.flatMap(node => [node, ...(node.subgraph ? all(node.subgraph) : [])]);
  const node = all(window.app.graph).find(node => node.type === type);
  const widget = node?.widgets.find(widget => widget.name === 'e4t_panel');
  if (!widget) return null;
  const find = name => widget.element.querySelector(name);
  const stock = node.widgets.find(widget => widget.name === '$$node-text-preview');
  return {
    state: find('.e4t-learning')?.dataset.state ?? '',
    title: find('.e4t-title')?.textContent ?? '',
    notes: [...widget.element.querySelectorAll('.e4t-notes li')].map(line => line.textContent),
    picture: find('.e4t-picture') && !find('.e4t-picture').hidden ? find('.e4t-picture').src : '',
    curve: find('.e4t-curve')?.getAttribute('aria-label') ?? '',
    points: find('polyline:last-child')?.getAttribute('points').split(' ').length ?? 0,
    box: widget.element.getBoundingClientRect().toJSON(),
    body: find('.e4t-body').getBoundingClientRect().toJSON(),
    mounted: widget.element.isConnected,
    bold: getComputedStyle(find('.e4t-title') ?? widget.element).fontWeight,
    said_twice: Boolean(stock) && !stock.hidden,
    drawn_twice: Boolean(node.imgs?.length),
  };
}"""
# Every count that a panel showed, also those that a look from outside is too slow for.
WATCH = """() => {
  window.counts = [];
  const look = () => { for (const at of document.querySelectorAll('.e4t-count')) window.counts.push(at.textContent) };
  new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""


@pytest.fixture(scope="module", params=[True, False], ids=["Nodes 2.0", "classic canvas"])
def page(server: Server, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """One page for all tests of a node mode."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = new_page(context, server)
    page.evaluate("on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", request.param)
    yield page
    context.close()


@pytest.fixture
def seed(page: Page) -> int:
    """Of the node mode: what the other one has learned is learned again."""
    return 7100 + 100 * int(page.evaluate("() => Number(window.LiteGraph.vueNodesMode)"))


@pytest.fixture
def mine(server: Server) -> Client:
    return Client(server.client.host, server.client.port)


def history(client: Client) -> set[str]:
    return set(json.loads(client.get("/history")))


def one_photo(seed: int) -> dict[str, Any]:
    """The shipped workflow, quick to sample, with a concept that was not learned yet, and an id of its own."""
    workflow = shipped_workflow("one_photo", sampling_steps=2)
    workflow["id"] = f"00000000-0000-4000-8000-{seed:012d}"
    for node in workflow["nodes"]:
        if node["type"] == "E4TPersonalize":
            node["widgets_values"][1] = seed
    return workflow


def look(page: Page, node: str = "E4TPersonalize") -> dict[str, Any]:
    return page.evaluate(PANEL, node) or {}


def until(page: Page, state: str, node: str = "E4TPersonalize") -> dict[str, Any]:
    """The panel, once it is in a state."""
    deadline = time.monotonic() + TOO_LONG
    while (seen := look(page, node)).get("state") != state:
        assert time.monotonic() < deadline, (
            f"the panel never said {state!r}, but {seen | {'picture': bool(seen.get('picture'))}}"
        )
        page.wait_for_timeout(100)
    page.wait_for_timeout(300)
    return look(page, node)


def test_the_panel_moves_while_the_node_learns_and_stays_afterwards(page: Page, mine: Client, seed: int) -> None:
    open_workflow(page, workflow=one_photo(seed))
    page.evaluate(WATCH)
    entry = ran(mine, page, history(mine))
    seen = until(page, "learned")
    assert seen["title"].startswith("S* learned in ")
    assert any(note.startswith("Memory: fast plan") for note in seen["notes"])
    assert [seen["title"], *seen["notes"]] == entry["outputs"]["4"]["text"], "the text alternative says something else"
    assert seen["picture"].startswith("data:image/jpeg;base64,")
    assert seen["curve"].startswith("Loss over 2 steps: from ") and seen["points"] == 2
    counts = page.evaluate("() => window.counts")
    assert any(count.startswith("step 1 of 2") for count in counts), counts
    assert not seen["said_twice"] and not seen["drawn_twice"], "ComfyUI's own text or picture is beside the panel"
    # A style sheet that is not found leaves the page's own font.
    assert seen["mounted"] and seen["bold"] == "600"
    assert seen["body"]["bottom"] <= seen["box"]["bottom"] + 1 and seen["body"]["right"] <= seen["box"]["right"] + 1


def test_it_says_the_same_when_comfyui_has_the_result(page: Page, mine: Client) -> None:
    before = look(page)
    ran(mine, page, history(mine))
    after = until(page, "learned")
    assert {**after, "box": 0, "body": 0} == {**before, "box": 0, "body": 0}


def test_it_is_there_again_when_another_workflow_was_open_meanwhile(page: Page, seed: int) -> None:
    before = look(page)
    load(page, shipped_workflow("textual_inversion"), "other")
    assert look(page) == {} and look(page, "E4TTextualInversion") == {}
    # Its node has the same number, and has learned nothing.
    load(page, one_photo(seed + 50), "another")
    assert look(page) == {}
    load(page, one_photo(seed), "again")
    assert {**until(page, "learned"), "box": 0, "body": 0} == {**before, "box": 0, "body": 0}


def test_after_a_reload_it_says_what_the_history_keeps_and_that_is_no_picture(
    page: Page, mine: Client, seed: int
) -> None:
    before = look(page)
    page.reload(timeout=PATIENCE * 1000)
    wait_until_started(page)
    open_workflow(page, workflow=one_photo(seed))
    after = until(page, "learned")
    assert (after["title"], after["notes"], after["curve"]) == (before["title"], before["notes"], before["curve"])
    assert after["picture"] == ""
    assert "data:image" not in mine.get("/history").decode()


def test_it_moves_in_a_subgraph_and_without_frames(page: Page, mine: Client, seed: int) -> None:
    open_workflow(page, workflow=one_photo(seed + 1))
    page.evaluate(
        "() => { const { graph } = window.app.canvas;"
        " const { subgraph } = graph.convertToSubgraph(new Set([graph.nodes.find(n => n.type === 'E4TPersonalize')]));"
        # A tab in the background is given no frames; they come once it is looked at again.
        " window.waiting = []; window.frames_of = window.requestAnimationFrame;"
        " window.requestAnimationFrame = callback => window.waiting.push(callback) }"
    )
    try:
        ran(mine, page, history(mine))
        until(page, "learned")
    finally:
        page.evaluate(
            "() => { window.requestAnimationFrame = window.frames_of;"
            " for (const callback of window.waiting) requestAnimationFrame(callback) }"
        )
    page.evaluate(
        "() => { const { canvas } = window.app; const node = canvas.graph.nodes.find(node => node.subgraph);"
        " canvas.openSubgraph(node.subgraph, node) }"
    )
    page.wait_for_timeout(500)
    seen = look(page)
    assert seen["mounted"] and seen["title"].startswith("S* learned in ") and seen["picture"]


def test_a_cancelled_run_says_where_it_was(page: Page, mine: Client, seed: int) -> None:
    workflow = shipped_workflow("textual_inversion", sampling_steps=2)
    learner = next(node for node in workflow["nodes"] if node["type"] == "E4TTextualInversion")
    learner["widgets_values"] = [1 if value == 4 else value for value in learner["widgets_values"]]
    learner["widgets_values"][1] = seed
    open_workflow(page, workflow=workflow)
    page.get_by_test_id("queue-button").click()
    until(page, "learning", "E4TTextualInversion")
    mine.post("/interrupt", {})
    seen = until(page, "cancelled", "E4TTextualInversion")
    assert seen["title"].startswith("S*: cancelled")


# What a card shows, or nothing.
CARD = """type => {
  const node = window.app.graph.nodes.find(node => node.type === type);
  const place = node?.widgets.find(widget => widget.name === 'e4t_panel')?.element.querySelector('.e4t-concept');
  return place ? {
    words: [...place.querySelector('.e4t-words').children].map(line => line.textContent),
    kinds: [...place.querySelectorAll('*')].map(part => part.localName).sort().join(' '),
    picture: place.querySelector('img')?.getAttribute('src') ?? '',
  } : null;
}"""
LOAD, APPLY = "E4TLoadConcept", "E4TApplyConcept"
WITHOUT_PICTURE = "button div span span strong"


def card(page: Page, node: str, words: list[str] | None) -> dict[str, Any] | None:
    """A node's card, once it says these words; none: once there is none."""
    deadline = time.monotonic() + TOO_LONG
    while ((seen := page.evaluate(CARD, node)) or {"words": None})["words"] != words:
        assert time.monotonic() < deadline, f"the card of {node} never said {words}, but {seen}"
        page.wait_for_timeout(200)
    return seen


def saved(server: Server, name: str, like: str, **metadata: str) -> None:
    """A concept file with metadata changed, as a stranger might have written it."""
    folder = server.base / "models" / "embeddings" / "e4t"
    with safe_open(folder / f"{like}.safetensors", framework="pt") as file:
        said = file.metadata() | metadata
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors, folder / f"{name}.safetensors", said)


def choose(page: Page, name: str) -> None:
    page.evaluate(
        "name => { const node = window.app.graph.nodes.find(node => node.type === 'E4TLoadConcept');"
        " node.widgets.find(widget => widget.name === 'concept_name').value = name }",
        name,
    )


@pytest.fixture
def kept(page: Page, mine: Client, server: Server) -> str:
    """A concept that was saved, and a page that loads it."""
    open_workflow(page, name="save_and_reuse", sampling_steps=2)
    page.evaluate(
        "() => { const node = window.app.graph.nodes.find(node => node.type === 'E4TSaveConcept');"
        " for (const widget of node.widgets) if (widget.name === 'name') widget.value = 'panel_face' }"
    )
    if not (server.base / "models" / "embeddings" / "e4t" / "panel_face.safetensors").exists():
        ran(mine, page, history(mine))
    choose(page, "panel_face")
    return "panel_face"


def test_the_card_of_a_file_is_there_before_anything_runs(page: Page, server: Server, kept: str) -> None:
    made = "E4T · on miniworld.safetensors · domain mini_faces"
    seen = card(page, LOAD, ["S*", "panel_face", made])
    assert seen and seen["kinds"] == WITHOUT_PICTURE
    card(page, APPLY, ["S*", "panel_face", made])
    pixel = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    saved(server, "pictured", kept, **{"modelspec.thumbnail": pixel})
    choose(page, "pictured")
    page.wait_for_timeout(1500)
    assert page.evaluate(CARD, LOAD)["picture"] == pixel == page.evaluate(CARD, APPLY)["picture"]
    choose(page, "is_not_there")
    card(page, LOAD, None)
    card(page, APPLY, None)


def test_the_button_copies_the_trigger_that_the_node_gives(page: Page, kept: str) -> None:
    card(page, LOAD, ["S*", "panel_face", "E4T · on miniworld.safetensors · domain mini_faces"])
    page.evaluate(
        "() => { const node = window.app.graph.nodes.find(node => node.type === 'E4TApplyConcept');"
        " node.widgets.find(widget => widget.name === 'trigger').value = 'anna' }"
    )
    card(page, APPLY, ["anna", "panel_face", "E4T · on miniworld.safetensors · domain mini_faces"])
    for node, trigger, by_key in ((LOAD, "S*", False), (APPLY, "anna", True)):
        # Not drawn while it is out of sight: the node first, then its button.
        page.evaluate(
            "type => { app.canvas.ds.scale = 1; app.canvas.centerOnNode(app.graph.nodes.find(n => n.type === type)) }",
            node,
        )
        button = page.get_by_role("button", name=f"Copy {trigger}", exact=True)
        bring_near(page, button)
        if by_key:
            button.focus()
            page.keyboard.press("Enter")
        else:
            button.click()
        page.get_by_role("button", name=f"{trigger} is copied").wait_for()
        assert page.evaluate("() => navigator.clipboard.readText()") == trigger


def test_what_a_stranger_s_file_says_is_text_and_nothing_else(page: Page, server: Server, kept: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with safe_open(server.base / "models" / "embeddings" / "e4t" / f"{kept}.safetensors", framework="pt") as file:
        info = json.loads(file.metadata()["e4t.info"])
    attack = "<img src=x onerror='window.hurt = true'><script>window.hurt = true</script>"
    hostile = json.dumps(
        info | {"title": attack, "method": attack, "base_name": attack, "body": attack, "domain_name": 7}
    )
    drawing = "data:image/svg+xml;base64,PHN2ZyB4bWxucz0iaHR0cDovL3d3dy53My5vcmcvMjAwMC9zdmciLz4="
    for number, thumbnail in enumerate(
        (drawing, "http://127.0.0.1:9/spy.png", "javascript:window.hurt=true", "/prompt")
    ):
        name = f"hostile_{number}"
        saved(server, name, kept, **{"e4t.info": hostile, "modelspec.thumbnail": thumbnail})
        choose(page, name)
        seen = card(page, LOAD, ["S*", attack, f"{attack} · on {attack}"])
        assert seen and seen["kinds"] == WITHOUT_PICTURE, "the file's text became something else"
    for number, broken in enumerate(("", "{", "[1, 2]", '{"trigger": {"a": 1}, "title": 3}')):
        saved(server, f"broken_{number}", kept, **{"e4t.info": broken})
        choose(page, f"broken_{number}")
        page.wait_for_timeout(1300)
        seen = page.evaluate(CARD, LOAD)
        assert seen is None or seen["words"] == ["", ""], seen
    assert not page.evaluate("() => window.hurt"), "a script of the file ran"
    assert not [url for url in asked if "spy" in url]


MARK = """type => {
  const node = window.app.graph.nodes.find(node => node.type === type);
  const panel = node.widgets.find(widget => widget.name === 'e4t_panel')?.element;
  return panel?.querySelector('.e4t-warning [role=status]')?.textContent ?? '';
}"""
WRITE = """text => {
  for (const node of window.app.graph.nodes) {
    if (node.type === 'CLIPTextEncode' && node.title !== 'Negative prompt') node.widgets[0].value = text;
  }
}"""


def mark(page: Page, text: str, node: str = "E4TPersonalize") -> None:
    """Waits until the mark says a text, or is gone."""
    deadline = time.monotonic() + TOO_LONG
    while (seen := page.evaluate(MARK, node)) != text:
        assert time.monotonic() < deadline, f"the mark never said {text!r}, but {seen!r}"
        page.wait_for_timeout(200)


def test_a_word_that_no_prompt_has_is_marked_until_one_has_it(page: Page, seed: int) -> None:
    open_workflow(page, workflow=one_photo(seed + 2))
    mark(page, "")
    unused = "S* is in no prompt behind this node: write it into one, or it is not drawn."
    for text, told in (
        ("a photo of a cat", unused),
        ("S*'s hat", ""),
        ("XS* and S*y", unused),
        ("(S*:1.3)", ""),
        ("a photo of s*", "S* is only with other capitals: write it into one, or it is not drawn."),
        ("embedding:e4t/S*, smiling", ""),
        ("cat", unused),
        # Written without spaces: the word counts, as it does for the text encoder.
        ("一张S*的照片", ""),
    ):
        page.evaluate(WRITE, text)
        mark(page, told)
    # A text that is made by another node: one that holds it as a widget, and one whose text nobody knows yet.
    page.evaluate(WRITE, "a cat")
    mark(page, unused)
    wire = (
        "([type, text]) => { const { graph } = window.app; const made = window.LiteGraph.createNode(type);"
        " graph.add(made); if (text !== null) made.widgets[0].value = text;"
        " const to = graph.nodes.find(n => n.type === 'CLIPTextEncode' && n.title !== 'Negative prompt');"
        " made.connect(0, to, to.inputs.findIndex(input => input.name === 'text')) }"
    )
    page.evaluate(wire, ["PrimitiveString", "a photo of S*"])
    mark(page, "")
    page.evaluate(wire, ["PrimitiveString", "a dog"])
    mark(page, unused)
    page.evaluate(wire, ["StringReplace", None])
    mark(page, "")


def test_prompts_are_found_in_subgraphs_and_behind_other_nodes(page: Page, seed: int) -> None:
    open_workflow(page, workflow=one_photo(seed + 3))
    page.evaluate(WRITE, "a cat")
    mark(page, "S* is in no prompt behind this node: write it into one, or it is not drawn.")
    page.evaluate(WRITE, "a photo of S*")
    mark(page, "")
    page.evaluate(
        "() => { const { graph } = window.app; const prompts = graph.nodes.filter(n => n.type === 'CLIPTextEncode');"
        " graph.convertToSubgraph(new Set(prompts)) }"
    )
    page.wait_for_timeout(1500)
    mark(page, "")
    page.evaluate(
        # Its texts are widgets of the subgraph's node now.
        "() => { const host = window.app.graph.nodes.find(node => node.subgraph);"
        " for (const widget of host.widgets) widget.value = 'a cat' }"
    )
    mark(page, "S* is in no prompt behind this node: write it into one, or it is not drawn.")
