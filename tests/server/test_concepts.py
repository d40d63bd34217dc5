"""Concepts on disk, through real servers: saved in one, drawn in the next, read by ComfyUI's own listings."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from devtools.comfyui_client import Client, Rejected, Run, Workflow
from devtools.comfyui_server import Server

DRAWN = "10"  # the SaveImage of the shipped workflow


def with_save(workflow: Workflow, name: str, keeps: str) -> Workflow:
    """The workflow, and what it learns is saved."""
    node = {"class_type": "E4TSaveConcept", "inputs": {"concept": ["4", 2], "name": name, "keeps": keeps}}
    return {**workflow, "20": node}


def from_file(workflow: Workflow, name: str, **strengths: float) -> Workflow:
    """The same picture from a saved concept, without photo and domain."""
    kept = {number: node for number, node in workflow.items() if number not in ("2", "3", "4")}
    applied = {"model": ["1", 0], "clip": ["1", 1], "concept": ["30", 0], **strengths}
    return {
        **kept,
        "30": {"class_type": "E4TLoadConcept", "inputs": {"concept_name": name}},
        "4": {"class_type": "E4TApplyConcept", "inputs": applied},
    }


def succeeded(run: Run) -> Run:
    assert run.status == "success", run.error.get("exception_message", run.status)
    return run


def picture(client: Client, workflow: Workflow) -> bytes:
    drawn = succeeded(client.run(workflow))
    return Image.open(io.BytesIO(client.view(drawn.outputs[DRAWN]["images"][0]))).convert("RGB").tobytes()


@pytest.fixture(scope="module")
def next_server(server: Server, tmp_path_factory: pytest.TempPathFactory):
    """Another ComfyUI on the same folders, as after a restart."""
    log = tmp_path_factory.mktemp("next") / "comfyui.log"
    with Server(server.comfyui, server.base, log) as running:
        yield running


def test_a_saved_concept_draws_the_same_picture_in_the_next_server(
    client: Client, next_server: Server, workflow: Callable[..., Workflow]
) -> None:
    made = workflow(E4TPersonalize={"seed": 71}, KSampler={"seed": 5, "steps": 2})
    succeeded(client.run(with_save(made, "kept", "exact")))
    said = succeeded(client.run(with_save(made, "recipe", "recipe"))).outputs["20"]["text"]
    assert "The photo can be recovered" in " ".join(said)
    wanted = picture(client, made)
    after = Client(next_server.client.host, next_server.client.port)
    assert picture(after, from_file(made, "kept")) == wanted
    assert picture(after, from_file(made, "recipe")) == wanted, "learned again from its recipe"
    stock = picture(after, from_file(made, "kept", strength_model=0.0, strength_word=0.0))
    assert stock != wanted
    # Stock nodes know its word; a person who has only this workflow needs no pack for it.
    text = from_file(made, "kept")["5"]["inputs"]["text"].replace("S*", "embedding:e4t/kept")
    plain = {number: node for number, node in from_file(made, "kept").items() if number not in ("4", "30")}
    for node in plain.values():
        node["inputs"] = {
            key: ["1", value[1]] if isinstance(value, list) and value[0] == "4" else value
            for key, value in node["inputs"].items()
        }
    plain["5"]["inputs"]["text"] = text
    assert picture(after, plain) not in (wanted, stock)


def test_comfyui_s_own_listings_read_title_trigger_and_base(
    client: Client, server: Server, workflow: Callable[..., Workflow]
) -> None:
    made = with_save(workflow(E4TPersonalize={"seed": 71}), "listed", "exact")
    made["20"]["inputs"] |= {
        "title": "Anna, summer", "author": "me", "overwrite": True, "store_preview": True, "preview": ["9", 0]
    }  # fmt: skip
    succeeded(client.run(made))
    told = json.loads(client.get("/view_metadata/embeddings?filename=e4t/listed.safetensors"))
    assert told["modelspec.title"] == "Anna, summer"
    assert told["modelspec.trigger_phrase"] == "S*"
    assert told["modelspec.base_model"] == "SD 1"
    assert told["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert json.loads(told["e4t.info"])["base_name"] == "miniworld.safetensors"
    listed = json.loads(client.get("/models/embeddings"))
    assert "e4t/listed.safetensors" in [name.replace("\\", "/") for name in listed]
    with (server.base / "models" / "embeddings" / "e4t" / "listed.safetensors").open("rb") as file:
        assert int.from_bytes(file.read(8), "little") < 2**20
    known = json.loads(client.get("/object_info/E4TLoadConcept"))["E4TLoadConcept"]["input"]["required"]["concept_name"]
    assert "listed" in json.dumps(known)


def test_a_file_that_is_none_is_refused_before_anything_runs(
    client: Client, server: Server, workflow: Callable[..., Workflow], tmp_path: Path
) -> None:
    with pytest.raises(Rejected, match="was not found in .*e4t"):
        client.run(from_file(workflow(), "nobody"))
    with pytest.raises(Rejected, match="cannot be a file's"):
        # Alone: ComfyUI runs what else a job asks for, and leaves out the node with the fault.
        client.run({key: node for key, node in with_save(workflow(), "../out", "exact").items() if key != DRAWN})
