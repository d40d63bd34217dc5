"""A real ComfyUI server with this pack and a base model, domain and photo of random values: small, and soon loaded."""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Last on the path: tests of the same run may hold ComfyUI's own `nodes` in front of ours.
# What several files here share lies beside them.
for folder in (Path(__file__).resolve().parents[2], Path(__file__).resolve().parent):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

from in_browser import CHROMIUM, FLAGS, PATIENCE, new_page
from random_files import write_random_domain, write_random_photo

from devtools.comfyui_client import Client, Workflow
from devtools.comfyui_server import Server, prepare_base
from devtools.comfyui_source import find_or_fetch
from devtools.miniworld_setup import CHECKPOINT, DOMAIN, PHOTO
from devtools.places import WORKFLOWS
from miniworld.checkpoint import write_random_checkpoint

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# A shell has what it starts in the background ignore Ctrl-C, and what tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The running server; one for all tests here, because it takes a while to start."""
    # Freed tensors go back to the system at once, so that what the process holds can be measured (glibc, mallopt(3)).
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    base = tmp_path_factory.mktemp("comfyui")
    prepare_base(base)
    write_random_checkpoint(base / CHECKPOINT, seed=0)
    write_random_domain(base / DOMAIN, base / CHECKPOINT)
    write_random_photo(base / PHOTO)
    with Server(find_or_fetch(), base, base / "comfyui.log") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Client:
    """A client of the server, with an identity of its own."""
    return Client(server.client.host, server.client.port)


@pytest.fixture
def workflow() -> Callable[..., Workflow]:
    """Makes the shipped API workflow, quick to sample, with inputs changed: `workflow(E4TPersonalize={"seed": 3})`."""
    shipped: Workflow = json.loads((WORKFLOWS / "api" / "one_photo.json").read_text(encoding="utf-8"))

    def make(**changes: dict[str, object]) -> Workflow:
        made = copy.deepcopy(shipped)
        for node in made.values():
            node["inputs"] |= {"steps": 2} if node["class_type"] == "KSampler" else {}
            node["inputs"] |= changes.get(node["class_type"], {})
        return made

    return make


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser without windows; one for all tests of a file, because it takes a while to start."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=FLAGS, timeout=PATIENCE * 1000
        )
        yield browser
        browser.close()


@pytest.fixture
def page(server: Server, browser: Browser) -> Iterator[Page]:
    """A page of the running ComfyUI, as at a first visit."""
    context = browser.new_context()
    yield new_page(context, server)
    context.close()
