"""A concept that one ComfyUI exports is drawn by another one that has never heard of this pack."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from devtools.comfyui_client import Client, Run, Workflow
from devtools.comfyui_server import FOLDERS, Server
from devtools.comfyui_source import find_or_fetch
from devtools.miniworld_setup import CHECKPOINT

FORMS = {"anna": "exact LoRA and embedding", "ben": "bundle (one file)"}
# The node measures noise predictions on other latents than a sampler makes; pictures are near its figure, not at it.
NEAR = 3


@pytest.fixture(scope="module")
def own(server: Server) -> dict[str, Tensor]:
    """What the pack's own MODEL and CLIP draw with a fixed word, and the base; and every form exported."""
    workflow = json.loads((Path(__file__).parents[2] / "workflows" / "api" / "one_photo.json").read_text("utf-8"))
    workflow["8"]["inputs"]["steps"] = 2
    # Enough that the picture moves.
    workflow["20"] = {"class_type": "E4TSettings", "inputs": {"refine": False, "learning_rate": 2e-3}}
    workflow["4"]["inputs"]["settings"] = ["20", 0]
    for number, (name, form) in enumerate(FORMS.items(), 21):
        source: dict[str, object] = {"concept": ["4", 2], "model": ["1", 0], "clip": ["1", 1]}
        workflow[str(number)] = {"class_type": "E4TExportConcept", "inputs": source | {"name": name, "form": form}}
    client = Client(server.client.host, server.client.port)
    ran = _succeeded(client.run(_saving_latent(workflow)))
    for number, name in enumerate(FORMS, 21):
        said = " ".join(ran.outputs[str(number)]["text"])
        assert f"embedding:{name}" in said and "is lost" in said
    plain = _stock_workflow(workflow, None)
    return {"own": _latent(server, ran), "base": _latent(server, _succeeded(client.run(plain)))}


@pytest.fixture(scope="module")
def stock(server: Server, own: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI without the pack, with the same base model and the exported files."""
    base = tmp_path_factory.mktemp("stock")
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    (base / CHECKPOINT).hardlink_to(server.base / CHECKPOINT)
    for folder in ("models/loras", "models/embeddings"):
        shutil.copytree(server.base / folder, base / folder, dirs_exist_ok=True)
    with Server(find_or_fetch(), base, base / "comfyui.log") as running:
        yield running


def _saving_latent(workflow: Workflow) -> Workflow:
    """The same, which keeps the sampler's latent in place of a picture of 8 bits."""
    kept = {number: node for number, node in workflow.items() if node["class_type"] not in ("VAEDecode", "SaveImage")}
    return kept | {
        "30": {"class_type": "SaveLatent", "inputs": {"samples": ["8", 0], "filename_prefix": "latents/e4t"}}
    }


def _stock_workflow(workflow: Workflow, name: str | None) -> Workflow:
    """Stock nodes alone: a LoRA loader in place of the pack's node, or nothing."""
    nodes = json.loads(json.dumps(_saving_latent(workflow)))
    nodes = {
        number: node for number, node in nodes.items() if not node["class_type"].startswith("E4T") and number != "2"
    }
    source = "1"
    if name is not None:
        source = "40"
        inputs = {"model": ["1", 0], "clip": ["1", 1], "lora_name": f"{name}.safetensors"}
        nodes[source] = {"class_type": "LoraLoader", "inputs": inputs | {"strength_model": 1.0, "strength_clip": 1.0}}
    for node in nodes.values():
        for key, value in node["inputs"].items():
            if value in (["4", 0], ["4", 1]):
                node["inputs"][key] = [source, value[1]]
            elif isinstance(value, str) and "S*" in value:
                node["inputs"][key] = value.replace("S*", "face" if name is None else f"embedding:{name}")
    return nodes


def _succeeded(run: Run) -> Run:
    assert run.status == "success", run.error.get("exception_message", run.status)
    return run


def _latent(server: Server, run: Run) -> Tensor:
    (saved,) = run.outputs["30"]["latents"]
    return load_file(server.base / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"].float()


def test_it_has_none_of_the_pack_s_nodes(stock: Server) -> None:
    known = json.loads(stock.client.get("/object_info"))
    assert "LoraLoader" in known and not [name for name in known if name.startswith("E4T")]


@pytest.mark.parametrize("name", FORMS)
def test_stock_nodes_draw_what_the_pack_draws(stock: Server, own: dict[str, Tensor], name: str) -> None:
    workflow = json.loads((Path(__file__).parents[2] / "workflows" / "api" / "one_photo.json").read_text("utf-8"))
    workflow["8"]["inputs"]["steps"] = 2
    client = Client(stock.client.host, stock.client.port)
    drawn = _latent(stock, _succeeded(client.run(_stock_workflow(workflow, name))))
    moved = (own["own"] - own["base"]).norm()
    assert moved > 0.01 * own["base"].norm()
    with safe_open(stock.base / "models" / "loras" / f"{name}.safetensors", framework="pt") as file:
        lost = float(file.metadata()["e4t.effect_lost"])
    assert lost < 0.25
    assert (drawn - own["own"]).norm() < (NEAR * lost + 1e-3) * moved
    # All of the file was used, but for the word, which is the prompt's.
    missed = {line.split(": ")[-1] for line in stock.said().splitlines() if "lora key not loaded" in line}
    assert missed <= {"bundle_emb.ben.string_to_param.*"}
    assert "embedding:" not in " ".join(line for line in stock.said().splitlines() if "does not exist" in line)


def test_its_model_library_knows_the_files_by_what_they_say(stock: Server) -> None:
    about = json.loads(stock.client.get("/view_metadata/loras?filename=ben.safetensors"))
    assert json.loads(about["trained_words"]) == ["embedding:ben"]
    assert about["modelspec.architecture"] == "stable-diffusion-v1/lora"
