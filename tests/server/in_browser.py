"""ComfyUI's own page in a browser without windows: what the tests of `test_browser` and `test_panel` share."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest

from devtools.comfyui_client import Client
from devtools.comfyui_server import Server
from devtools.places import WORKFLOWS

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 300.0
"""Seconds for anything in the page: a few are enough unless the machine is busy."""

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome was found on PATH")


def new_page(context: BrowserContext, server: Server) -> Page:
    """ComfyUI's page, started, in a browser's context."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(server.client.url, timeout=PATIENCE * 1000)
    wait_until_started(page)
    return page


def wait_until_started(page: Page) -> None:
    """Waits until the page can open a workflow."""
    page.wait_for_function("() => window.app?.graph && window.app?.extensionManager && window.LiteGraph")


def shipped_workflow(name: str, sampling_steps: int | None = None) -> dict[str, Any]:
    """A shipped workflow as its file says; fewer sampling steps save time."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        if node["type"] == "KSampler" and sampling_steps is not None:
            node["widgets_values"][2] = sampling_steps
    return workflow


def open_workflow(
    page: Page, sampling_steps: int | None = None, name: str = "one_photo", workflow: dict[str, Any] | None = None
) -> None:
    """Opens a shipped workflow, or another, as dropping its file onto the page does."""
    workflow = workflow or shipped_workflow(name, sampling_steps)
    # A page that is still starting puts its default graph over ours: load again until ours has stayed for a while.
    ours = sorted(str(node["id"]) for node in workflow["nodes"])
    is_open = "ours => window.app.graph.nodes.map(node => String(node.id)).sort().join() === ours.join()"
    deadline = time.monotonic() + PATIENCE
    stayed = 0
    load(page, workflow, name)
    while stayed < 3:
        assert time.monotonic() < deadline, "the page never kept the workflow open"
        # A first visit opens the templates over all, on a busy machine some seconds late.
        page.keyboard.press("Escape")
        if page.evaluate(is_open, ours):
            stayed += 1
        else:
            stayed = 0
            load(page, workflow, name)
        page.wait_for_timeout(1000)


def load(page: Page, workflow: dict[str, Any], name: str) -> None:
    """Opens a workflow in a page that has started."""
    page.evaluate("([workflow, name]) => window.app.loadGraphData(workflow, true, true, name)", [workflow, name])


# Moves the canvas so that an element is in the window's middle; a node may be taller than the window. An element on the
# canvas follows at the next drawing: what is asked before says where it was. Tells whether it is there, and stays there.
TO_THE_MIDDLE = """async element => {
  const drawn = () => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  await drawn();
  const off = () => {
    const box = element.getBoundingClientRect();
    return [innerWidth / 2 - box.x - box.width / 2, innerHeight / 2 - box.y - box.height / 2];
  };
  const { ds } = app.canvas, [x, y] = off();
  ds.offset[0] += x / ds.scale;
  ds.offset[1] += y / ds.scale;
  app.canvas.setDirty(true, true);
  await drawn();
  return Math.hypot(x, y) < 2 && Math.hypot(...off()) < 2;
}"""


def bring_near(page: Page, element: Locator) -> None:
    """Brings what a node shows into the window's middle, as large as one works at it.

    Far away, the classic canvas draws no panels, nor any text field."""
    page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.setDirty(true, true) }")
    deadline = time.monotonic() + PATIENCE
    while not element.evaluate(TO_THE_MIDDLE):
        assert time.monotonic() < deadline, "the canvas never stood still"


def ran(client: Client, page: Page, before: set[str]) -> dict[str, Any]:
    """What became of the one workflow that Run queues now."""
    page.get_by_test_id("queue-button").click()
    deadline = time.monotonic() + PATIENCE
    while not (new := set(json.loads(client.get("/history"))) - before):
        assert time.monotonic() < deadline, "the run never ended"
        time.sleep(0.5)
    entry = client.history(new.pop())
    assert entry["status"]["status_str"] == "success", entry["status"]
    return entry
