"""Real ComfyUI modules in this process, on the CPU, and a base model as small as stock loaders accept.

The ComfyUI tree is COMFYUI_PATH or .dev/comfyui; without one these tests are skipped. The pack is imported as ComfyUI
does it, as a package of another name.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".dev" / "comfyui")


if (COMFYUI / "comfy").is_dir():
    if str(COMFYUI) not in sys.path:
        # ComfyUI first and the repository's own folder last: both have a "nodes".
        own = [entry for entry in sys.path if Path(entry or ".").resolve() == ROOT]
        sys.path[:] = [str(COMFYUI), *(entry for entry in sys.path if entry not in own), *own]
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import torch

    torch.set_num_threads(1)
    # For world.py, for files that stock nodes load, and for the rooms beside the pack (the core, commands, benchmarks).
    here = Path(__file__).parent
    sys.path += [folder for folder in (str(here), str(here.parent / "server"), str(ROOT)) if folder not in sys.path]
    from commands.inside.one_core import import_pack

    import_pack(ROOT)
    # ComfyUI collects garbage whenever a model goes; without the libraries' millions of objects that takes no time.
    gc.freeze()
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def embeddings(tmp_path_factory):
    """The stock text encoder's folder of textual inversions."""
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="session")
def base(embeddings):
    """(MODEL, CLIP, VAE) of a random base: one level, few blocks, a two-layer text encoder."""
    from world import make_base

    return make_base(embeddings=embeddings)


@pytest.fixture(scope="session")
def domain(base):
    """A random domain for it, whose offsets and encoder do something."""
    from world import ComfyUNet, make_domain

    # As the node that reads one makes it.
    with torch.inference_mode():
        return make_domain(ComfyUNet(base[0]))


@pytest.fixture(autouse=True)
def clean_store():
    """Every test starts with an empty store and nothing loaded."""
    import comfy.model_management
    from e4t_pack.nodes.host.learning.result_store import STORE

    STORE.clear()
    # As ComfyUI's executor does for every node.
    with torch.inference_mode():
        yield
    STORE.clear()
    comfy.model_management.interrupt_current_processing(False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The only folder of domain files there is during a test."""
    import folder_paths
    from e4t_pack.nodes.host import model_folders

    folder = tmp_path / "e4t_domains"
    folder.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, model_folders.DOMAINS, ([str(folder)], {".safetensors"}))
    monkeypatch.setattr(model_folders, "register_folders", lambda: None)
    # ComfyUI remembers listings by folder and fails on one that is gone, as this one is after the test.
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return folder


@pytest.fixture
def stock_folder(embeddings, monkeypatch):
    """Folder of concept files among ComfyUI's embeddings, which the tests' stock CLIP reads; empty."""
    import folder_paths

    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "embeddings", ([str(embeddings)], folder_paths.supported_pt_extensions)
    )
    yield embeddings / "e4t"
    shutil.rmtree(embeddings / "e4t", ignore_errors=True)


@pytest.fixture
def places(folder, stock_folder, tmp_path, monkeypatch):
    """The only folders of concept files, of their second files (both empty) and of domain files (it holds the domain)."""
    import folder_paths
    from e4t_pack.nodes.host import model_folders
    from kept_by_nodes import Places

    weights = tmp_path / "e4t_concepts"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, model_folders.WEIGHTS, ([str(weights)], {".safetensors"}))
    return Places(stock_folder, weights, folder)


@pytest.fixture
def run(base, domain, monkeypatch):
    """Runs the node "E4T Personalize"; ``run.tunings`` counts how often it really tuned."""
    from e4t_pack.nodes.host.learning import learn
    from e4t_pack.nodes.host.learning.request import LoadedDomain
    from e4t_pack.nodes.personalize import Personalize
    from world import chosen, photo

    from e4t_core.methods.e4t.settings import TuningSettings

    original = learn.train

    def counted(*arguments, **options):
        execute.tunings += 1
        return original(*arguments, **options)

    def execute(
        model=base[0],
        clip=base[1],
        vae=base[2],
        image=None,
        settings=None,
        word="S*",
        seed=1,
        mask=None,
        of=domain,
        mask_means="auto",
        # These random domains know no subject, and a search for one takes longer than a tuning.
        crop="middle",
        which=0,
        boxes=None,
        square="",
        **sampling,
    ):
        image = photo() if image is None else image
        if sampling or isinstance(settings, TuningSettings):
            settings = chosen(settings or of.info.preset, **sampling)
        loaded = LoadedDomain(of)
        return Personalize.execute(
            model, clip, vae, loaded, image, word, seed, mask, settings, mask_means, crop, which, boxes, square=square
        ).args

    execute.tunings = 0
    monkeypatch.setattr(learn, "train", counted)
    return execute


@pytest.fixture(scope="module")
def untouched(base):
    """Asserts that all base weights and a stock picture are, bit for bit, what they were before the first test."""
    import comfy.model_management
    from personalized import draw

    def state():
        comfy.model_management.unload_all_models()
        modules = {"unet": base[0].model, "clip": base[1].cond_stage_model, "vae": base[2].first_stage_model}
        return {
            f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()
        }

    before = {key: value.clone() for key, value in state().items()}
    picture = draw(base[0], base[1], "a photo of a cat")

    def check():
        after = state()
        assert after.keys() == before.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert torch.equal(draw(base[0], base[1], "a photo of a cat"), picture)

    return check
