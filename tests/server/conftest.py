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
import torch
from PIL import Image
from safetensors import safe_open

# Last on the path: tests of the same run may hold ComfyUI's own `nodes` in front of ours.
# What several files here share lies beside them.
for folder in (Path(__file__).resolve().parents[2], Path(__file__).resolve().parent):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

from in_browser import CHROMIUM, FLAGS, PATIENCE, new_page

from devtools.comfyui_client import Client, Workflow
from devtools.comfyui_server import Server, prepare_base
from devtools.comfyui_source import find_or_fetch
from devtools.miniworld_setup import CHECKPOINT, DOMAIN, PHOTO
from devtools.places import WORKFLOWS
from e4t_core.canonical_names import canonical_names
from e4t_core.files.domain_file import save_domain
from e4t_core.methods.e4t.clip_backbone import build_vision_tower
from e4t_core.methods.e4t.concept_encoder import ConceptEncoder
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.domain_info import BackboneInfo, DomainInfo
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.methods.e4t.weight_offsets import WeightOffsets
from miniworld.checkpoint import write_random_checkpoint

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# A shell has what it starts in the background ignore Ctrl-C, and what tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

UNET_PREFIX = "model.diffusion_model."
STEPS = 2
"""Tuning steps of the random domain's preset: enough for a progress bar, too few to wait for."""


def write_random_domain(path: Path, checkpoint: Path) -> None:
    """A domain of random weights that fits the base model in `checkpoint`."""
    with safe_open(checkpoint, framework="pt") as file:
        keys = [key for key in file.keys() if key.startswith(UNET_PREFIX)]  # noqa: SIM118
        shapes = {key.removeprefix(UNET_PREFIX): tuple(file.get_slice(key).get_shape()) for key in keys}
    canonical = canonical_names(shapes)
    projections = {
        canonical[name]: (shape[0], shape[1])
        for name, shape in shapes.items()
        if name.endswith((".to_q.weight", ".to_k.weight", ".to_v.weight"))
    }
    # One mean per channel of conv_in, of every input-side block and of the middle block; all are equally wide here.
    width = shapes["input_blocks.0.0.weight"][0]
    feature_width = width * (2 + max(int(name.split(".")[1]) for name in shapes if name.startswith("input_blocks.")))
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
    backbone = BackboneInfo(
        kind="open_clip",
        architecture=json.dumps({"embed_dim": 32, "vision_cfg": vision}),
        layers=(1, 2),
        width=64,
        image_size=32,
        weights_inside=True,
    )
    info = DomainInfo(
        name="mini_faces",
        word="face",
        base_family="sd1",
        prediction="epsilon",
        context_width=768,
        feature_width=feature_width,
        projections=projections,
        backbone=backbone,
        scale=0.1,
        templates=("a photo of {}",),
        # Looking for the subject takes longer than all the rest; who needs it switches it on by E4T Settings.
        preset=TuningSettings(
            steps=STEPS, learning_rate=1e-4, regularization=0.01, batch=1, micro_batch=1, find_subject=False
        ),
        image_size=128,
    )
    torch.manual_seed(0)
    tower = build_vision_tower(backbone)
    encoder = ConceptEncoder(len(backbone.layers), backbone.width, feature_width, info.context_width)
    save_domain(path, Domain(encoder, WeightOffsets(projections), info, dict(tower.state_dict())))


def write_random_photo(path: Path) -> None:
    """160×128 pixels of colored noise."""
    pixels = torch.randint(0, 256, (128, 160, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(path)


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
