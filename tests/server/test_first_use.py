"""The first use, from `git clone` into `custom_nodes` to the first picture: clicks are counted, seconds written down.

What it took is kept in .dev/journey/first_use.json; docs/first_use.md tells it.
"""

from __future__ import annotations

import io
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from in_browser import PATIENCE, needs_browser
from PIL import Image

from devtools.comfyui_client import Client
from devtools.comfyui_server import Server, prepare_base
from devtools.comfyui_source import find_or_fetch
from devtools.places import DEV, PACK_NAME, REPOSITORY, venv_python

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = needs_browser

MOST_CLICKS = 10
DRAWN = "() => window.app.graph.nodes.some(node => node.type === 'SaveImage' && node.images?.length)"
# All that the page tells of the job: the panel's texts, and which node runs how far.
PROGRESS = """() => JSON.stringify([
  ...[...document.querySelectorAll('.e4t-head')].map(one => one.textContent),
  ...window.app.graph.nodes.map(node => node.progress ?? 0),
])"""
REPORT = DEV / "journey" / "first_use.json"


class Watch:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begun, 1)


class Mouse:
    """The only way in which this test touches the page; no key is pressed."""

    def __init__(self) -> None:
        self.clicks: list[str] = []

    def click(self, at: Locator, what: str) -> None:
        at.click()
        self.clicks.append(what)


def wait_while_it_moves(page: Page) -> None:
    """Waits for the picture on its node, however slow the machine is, as long as the node that learns tells of progress."""
    told, since = "", time.monotonic()
    while not page.evaluate(DRAWN):
        if (now := page.evaluate(PROGRESS)) != told:
            told, since = now, time.monotonic()
        assert time.monotonic() - since < PATIENCE, f"nothing moves any more: {told}"
        page.wait_for_timeout(200)


def test_the_first_picture_is_ten_clicks_away_at_most(browser: Browser, tmp_path: Path) -> None:
    base, watch, mouse = tmp_path / "comfyui", Watch(), Mouse()
    pack = base / "custom_nodes" / PACK_NAME
    pack.parent.mkdir(parents=True)
    with watch.stage("git clone (from this disk)"):
        cloned = subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(pack)], capture_output=True, check=False)
    if cloned.returncode != 0:
        pytest.skip("not a git checkout")
    prepare_base(base, pack)
    with watch.stage("python -m miniworld.setup"):
        command = [str(venv_python()), "-m", "miniworld.setup", "--base-directory", "../.."]
        subprocess.run(command, cwd=pack, check=True, capture_output=True)
    server = Server(find_or_fetch(), base, tmp_path / "comfyui.log")
    try:
        with watch.stage("start of ComfyUI"):
            server.start()
        page = browser.new_context(viewport={"width": 1600, "height": 1000}).new_page()
        page.set_default_timeout(PATIENCE * 1000)
        with watch.stage("the page, until its templates are there"):
            page.goto(server.client.url, timeout=PATIENCE * 1000)
            page.get_by_test_id("template-workflows-content").wait_for()
        with watch.stage("clicks"):
            mouse.click(page.get_by_role("button", name=PACK_NAME), f"{PACK_NAME} in the list of templates")
            mouse.click(page.get_by_test_id("template-workflow-one_photo"), "the template one_photo")
            page.wait_for_function("() => window.app.graph.nodes.some(node => node.type === 'E4TPersonalize')")
            mouse.click(page.get_by_test_id("queue-button"), "Run")
        with watch.stage("learning and the first picture"):
            wait_while_it_moves(page)
        client = Client(server.client.host, server.client.port)
        (entry,) = json.loads(client.get("/history")).values()
        assert entry["status"]["status_str"] == "success", entry["status"]
        (image,) = [image for output in entry["outputs"].values() for image in output.get("images", [])]
        with Image.open(io.BytesIO(client.view(image))) as picture:
            assert picture.size == (128, 128)
        page.context.close()
    finally:
        server.stop()
    assert len(mouse.clicks) <= MOST_CLICKS
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps({"clicks": mouse.clicks, "seconds": watch.seconds}, indent=2) + "\n", encoding="utf-8")
