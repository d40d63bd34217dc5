"""An artist's whole way in ComfyUI's own page, in both node modes: from the template to a picture from a saved concept.

Its screenshots are kept in .dev/journey.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from in_browser import PATIENCE, needs_browser, new_page, wait_until_started
from PIL import Image

from devtools.comfyui_client import Client
from devtools.comfyui_server import Server
from devtools.places import DEV, PACK_NAME

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = needs_browser

SCREENSHOTS = DEV / "journey"
VIEW = {"width": 1600, "height": 1000}
# What the panel of the node that learns shows now.
PANEL = """() => {
  const node = window.app.graph.nodes.find(node => node.type === 'E4TPersonalize');
  const place = node?.widgets.find(widget => widget.name === 'e4t_panel')?.element;
  const at = name => place?.querySelector(name);
  const pictures = [...(place?.querySelectorAll('.e4t-picture') ?? [])].map(one => one.hidden ? '' : one.src);
  return {
    state: at('.e4t-learning')?.dataset.state ?? '',
    title: at('.e4t-title')?.textContent ?? '',
    count: at('.e4t-count')?.textContent ?? '',
    crop: pictures[0] ?? '',
    preview: pictures[1] ?? '',
    loss: at('.e4t-learning .e4t-curve')?.getAttribute('aria-label') ?? '',
    word: at('.e4t-word .e4t-curve')?.getAttribute('aria-label') ?? '',
    points: at('.e4t-word polyline:last-child')?.getAttribute('points').split(' ').length ?? 0,
  };
}"""
# Values of widgets, by the type of their node.
SET = """changes => {
  for (const node of window.app.graph.nodes) {
    for (const widget of node.widgets ?? []) {
      if (widget.name in (changes[node.type] ?? {})) widget.value = changes[node.type][widget.name];
    }
  }
}"""
ADD_SETTINGS = """steps => {
  const { graph } = window.app;
  const made = window.LiteGraph.createNode('E4TSettings');
  graph.add(made);
  made.pos = [-320, 60];
  made.widgets.find(widget => widget.name === 'steps').value = steps;
  const to = graph.nodes.find(node => node.type === 'E4TPersonalize');
  made.connect(0, to, to.inputs.findIndex(input => input.name === 'settings'));
}"""
# As a person does with Ctrl+M: what learned is switched off, what draws the saved concept is switched on.
SWITCH = """() => { for (const node of window.app.graph.nodes) {
  if (node.type !== 'CheckpointLoaderSimple') node.mode = node.mode === 2 ? 0 : 2;
} }"""
NEAR = """type => {
  const { canvas, graph } = window.app;
  canvas.ds.scale = 0.9;
  canvas.centerOnNode(graph.nodes.find(node => node.type === type));
  canvas.setDirty(true, true);
}"""
LISTED = """() => window.app.graph.nodes.find(node => node.type === 'E4TLoadConcept')
  ?.widgets.find(widget => widget.name === 'concept_name').options.values"""


class Journey:
    """A page, its server, and what the walk through it asks again and again."""

    def __init__(self, page: Page, server: Server, name: str) -> None:
        self.page, self.server, self.name = page, server, name
        self.client = Client(server.client.host, server.client.port)
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda said: self.faults.append(said.text) if PACK_NAME in said.location["url"] else None)
        self._shots = 0

    def until(self, asked: Callable[[], Any], what: str) -> Any:
        """Waits until a question has an answer."""
        deadline = time.monotonic() + PATIENCE
        while not (answer := asked()):
            assert time.monotonic() < deadline, f"never: {what}"
            self.page.wait_for_timeout(50)
        return answer

    def panel(self, what: str, right: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The panel, once it is right."""
        return self.until(lambda: (seen := self.page.evaluate(PANEL)) and right(seen) and seen, what)

    def sees_templates(self) -> bool:
        """Whether the templates are open, as they are by themselves at a first visit; else their button is pressed."""
        templates = self.page.get_by_test_id("template-workflows-content")
        if not templates.is_visible():
            # A page that is still starting does nothing when it is pressed.
            self.page.evaluate("() => document.querySelector('.templates-tab-button')?.click()")
            self.page.wait_for_timeout(2000)
        return templates.is_visible()

    def keep(self, what: str, of: str = "") -> None:
        """Keeps a screenshot; of a kind of node, as near as one works at it: far away the classic canvas draws no panels."""
        if of:
            self.page.evaluate(NEAR, of)
            self.page.wait_for_timeout(500)
        self._shots += 1
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{self.name}_{self._shots}_{what}.jpg"
        self.page.screenshot(path=str(path), type="jpeg", quality=70)

    def jobs(self) -> set[str]:
        """The jobs that have ended."""
        return set(json.loads(self.client.get("/history")))

    def run(self, times: int = 1) -> list[dict[str, Any]]:
        """What became of the jobs that pressing Run makes, pressed so often at once."""
        before = self.jobs()
        for _ in range(times):
            self.page.get_by_test_id("queue-button").click()
        self.until(lambda: len(self.jobs() - before) >= times, f"{times} jobs ended")
        return [self.client.history(job) for job in self.jobs() - before]

    def drawn(self, entry: dict[str, Any]) -> bytes:
        """The pixels of the one picture that a job saved."""
        assert entry["status"]["status_str"] == "success", entry["status"]
        (image,) = [
            image
            for output in entry["outputs"].values()
            for image in output.get("images", [])
            if image["type"] == "output"
        ]
        with Image.open(io.BytesIO(self.client.view(image))) as picture:
            assert picture.size == (128, 128)
            return picture.convert("RGB").tobytes()

    def learned(self) -> int:
        """How often the server has learned a photo."""
        return self.server.said().count(" learned in ")


# One server for both: what the first learned would be found by the second.
SEEDS = {"nodes_2": 7801, "classic": 7802}


@pytest.fixture(params=[True, False], ids=list(SEEDS))
def journey(server: Server, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Journey]:
    context = browser.new_context(viewport=VIEW)
    page = new_page(context, server)
    page.evaluate("on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", request.param)
    yield Journey(page, server, request.node.callspec.id)
    context.close()


def test_from_the_template_to_a_picture_from_the_saved_concept(journey: Journey) -> None:
    page, name = journey.page, f"journey_{journey.name}"

    # The template.
    journey.until(journey.sees_templates, "the templates are open")
    page.get_by_role("button", name=PACK_NAME).click()
    page.get_by_test_id("template-workflow-save_and_reuse").click()
    page.wait_for_function("() => window.app.graph.nodes.some(node => node.type === 'E4TSaveConcept')")
    page.evaluate(ADD_SETTINGS, 5000)
    page.evaluate(
        SET,
        {
            "E4TPersonalize": {"preview_every": 1, "seed": SEEDS[journey.name]},
            "E4TSaveConcept": {"name": name, "keeps": "recipe"},
            "KSampler": {"steps": 3, "control_after_generate": "fixed"},
        },
    )

    # It runs, the panel moves and shows what would be drawn now.
    learned = journey.learned()
    page.get_by_test_id("queue-button").click()
    first = journey.panel("a preview while it learns", lambda seen: seen["state"] == "learning" and seen["preview"])
    assert first["crop"].startswith("data:image/jpeg;base64,") and first["preview"] != first["crop"]
    journey.panel("another step", lambda seen: seen["count"] != first["count"] and seen["count"].startswith("step "))
    journey.panel("another preview", lambda seen: seen["preview"] != first["preview"])
    journey.panel("the losses", lambda seen: seen["loss"].startswith("Loss over "))
    journey.keep("learning", of="E4TPersonalize")

    # It is cancelled.
    page.get_by_role("button", name="Cancel current run").first.click()
    seen = journey.panel("that it was cancelled", lambda seen: seen["state"] == "cancelled")
    assert seen["title"].startswith("S*: cancelled at step ")
    journey.until(lambda: not json.loads(journey.client.get("/queue"))["queue_running"], "the job is over")
    journey.keep("cancelled", of="E4TPersonalize")
    assert journey.learned() == learned

    # It runs again, and to the end.
    page.evaluate(SET, {"E4TSettings": {"steps": 2}})
    (entry,) = journey.run()
    picture = journey.drawn(entry)
    seen = journey.panel("what was learned", lambda seen: seen["state"] == "learned" and seen["word"])
    assert seen["title"].startswith("S* learned in ") and seen["loss"].startswith("Loss over 2 steps")
    assert seen["word"].startswith("How far S* was from the coarse word, from noise to picture: ")
    assert seen["points"] == 3, "one point for each step of sampling"
    journey.keep("learned", of="E4TPersonalize")

    # Twice more with nothing touched: it was learned once.
    for entry in journey.run(times=2):
        assert entry["status"]["status_str"] == "success"
    assert journey.learned() == learned + 1

    # After a reload the concept is in the list and in the Model Library.
    page.reload(timeout=PATIENCE * 1000)
    wait_until_started(page)
    journey.until(lambda: name in (page.evaluate(LISTED) or []), "the concept is in Load's list")
    page.get_by_role("button", name="Model Library (m)").click()
    for folder in ("embeddings", "e4t"):
        page.get_by_role("treeitem", name=folder, exact=True).click()
    page.get_by_role("treeitem", name=name, exact=True).wait_for()
    journey.keep("model_library")

    # It is applied, without photo and domain.
    page.evaluate(SWITCH)
    page.evaluate(SET, {"E4TLoadConcept": {"concept_name": name}, "KSampler": {"steps": 3}})
    (entry,) = journey.run()
    assert journey.drawn(entry) != picture, "its prompt is another one"
    kinds = {node["class_type"] for node in entry["prompt"][2].values()}
    assert "E4TApplyConcept" in kinds and not kinds & {"LoadImage", "E4TLoadDomain", "E4TPersonalize"}
    journey.keep("applied", of="E4TApplyConcept")
    assert not journey.faults
