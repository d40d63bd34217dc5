"""A file that is no concept is told for what it is, and a concept without its second file says what is missing."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kept import by_layers, e4t, edited, equal, places, tensors_of
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import TinyUNet, tiny_domain

from e4t_core.concept import Concept
from e4t_core.files.concept_file import ConceptFileError, load_concept, read_concept_info
from e4t_core.files.concept_saving import Places, Saved, save_concept
from e4t_core.files.domain_file import save_domain
from e4t_core.files.file_errors import MESSAGE_LIMIT


def refused(path: Path, *weights: Path) -> str:
    with pytest.raises(ConceptFileError) as caught:
        load_concept(path, weights)
    message = str(caught.value)
    assert len(message) <= MESSAGE_LIMIT and message.isprintable() and message.endswith(".")
    return message


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a file's metadata."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.fixture
def folders(tmp_path: Path) -> Places:
    return places(tmp_path)


@pytest.fixture
def saved(folders: Places) -> Saved:
    return save_concept(folders, "anna", e4t(), "exact")


@pytest.mark.parametrize(
    "name, shape, told, advice",
    [
        ("clip_l", (1, 768), "is a plain embedding", "embedding:"),
        ("emb_params", (3, 768), "is a plain embedding", "embedding:"),
        ("*", (768,), "is a plain embedding", "embedding:"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", (4, 320), "is a LoRA", "models/loras"),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", (4, 320), "is a LoRA", "Load LoRA"),
        ("unet.down_blocks.0.attentions.0.attn1.to_q.lora_A.weight", (4, 320), "is a LoRA", "Load LoRA"),
        ("unet.down_blocks.0.attn1.processor.to_q_lora.down.weight", (4, 320), "is a LoRA", "Load LoRA"),
        ("unet.down_blocks.0.attn1.to_q.lora.down.weight", (4, 320), "is a LoRA", "Load LoRA"),
        ("diffusion_model.input_blocks.1.1.proj_in.weight.diff", (4, 320), "is a LoRA", "Load LoRA"),
        ("model.diffusion_model.input_blocks.0.0.weight", (4, 4, 3, 3), "is a checkpoint", "Load Checkpoint"),
        ("conv_in.weight", (4, 4, 3, 3), "is not an E4T concept", "Save E4T Concept"),
    ],
)
def test_other_kinds_of_file_are_told(
    tmp_path: Path, name: str, shape: tuple[int, ...], told: str, advice: str
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(shape)}, path, {"modelspec.title": "x"})
    message = refused(path)
    assert told in message and advice in message and "other.safetensors" in message


def test_a_domain_and_a_second_file_are_told(saved: Saved, folders: Places, tmp_path: Path) -> None:
    save_domain(tmp_path / "domain.safetensors", tiny_domain(TinyUNet()))
    assert "is an E4T domain: put it into models/e4t_domains" in refused(tmp_path / "domain.safetensors")
    assert saved.weights is not None
    message = refused(saved.weights, folders.weights)
    assert "holds the weights of an exact concept: choose the concept file it belongs to" in message


LAYER = "layer.down_blocks.0.attentions.1.transformer_blocks.0.attn2"


@pytest.mark.parametrize(
    ("make", "change", "told"),
    [
        (by_layers, {"layer.x": (1, 768)}, "holds layer.x, which is no cross-attention layer's word"),
        (by_layers, {LAYER: (2, 768)}, LAYER),
        (by_layers, {LAYER: (768,)}, LAYER),
        (by_layers, {"edit.gate": (2,)}, "edit."),
        (edited, {"edit.key": None}, "edit.key"),
        (edited, {"edit.direction": (769,)}, "edit.direction"),
        (edited, {LAYER: (1, 768)}, LAYER),
        (edited, {"edit.gate": (3,)}, "edit.gate"),
        (edited, {"edit.direction": (768,)}, "holds an edit whose gate cannot open"),
        (edited, {LAYER.replace(".1.", f".{n}."): None for n in range(3)}, "edits no cross-attention"),
    ],
)
def test_what_is_said_of_layers_has_to_fit(
    folders: Places, make: Callable[[], Concept], change: dict[str, tuple[int, ...] | None], told: str
) -> None:
    path = save_concept(folders, "layers", make(), "word").path
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    for name, shape in change.items():
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = torch.zeros(shape, dtype=torch.float64 if name == "edit.gate" else torch.float32)
    save_file(tensors, path, metadata)
    assert told in refused(path)


def test_a_newer_version_is_told_and_another_is_not_read(saved: Saved, folders: Places) -> None:
    rewritten(saved.path, lambda told: told.update({"e4t.version": "2"}))
    assert "has format version '2'" in (message := refused(saved.path, folders.weights))
    assert "update the extension" in message
    with pytest.raises(ConceptFileError, match="format version '2'"):
        read_concept_info(saved.path)


def test_a_second_file_of_a_newer_version_is_refused(saved: Saved, folders: Places) -> None:
    assert saved.weights is not None
    rewritten(saved.weights, lambda told: told.update({"e4t.version": "2"}))
    assert "or of another version" in refused(saved.path, folders.weights)


def test_a_missing_second_file_is_named_with_its_folder(saved: Saved, folders: Places) -> None:
    assert saved.weights is not None
    saved.weights.unlink()
    message = refused(saved.path, folders.weights)
    assert message.startswith("Concept weights file ") and saved.weights.name in message
    assert "was not found in " in message and "e4t_concepts" in message and "an exact concept is two files" in message
    assert read_concept_info(saved.path).weights_file == saved.weights.name


def test_a_second_file_of_another_concept_is_refused(saved: Saved, folders: Places) -> None:
    other = save_concept(folders, "bert", e4t(seed=2), "exact")
    assert saved.weights is not None and other.weights is not None
    shutil.copy(other.weights, saved.weights)
    assert "belongs to another concept than 'anna.safetensors'" in refused(saved.path, folders.weights)


def test_a_second_file_may_lie_beside_the_first(saved: Saved, folders: Places) -> None:
    assert saved.weights is not None
    shutil.move(saved.weights, folders.words / saved.weights.name)
    assert equal(tensors_of(load_concept(saved.path, [folders.weights])[0]), tensors_of(e4t()))
    assert equal(tensors_of(load_concept(saved.path, [])[0]), tensors_of(e4t()))


def test_a_second_file_is_found_in_any_of_the_folders(saved: Saved, folders: Places, tmp_path: Path) -> None:
    others = [tmp_path / "one", tmp_path / "two", tmp_path / "three"]
    others[1].mkdir()
    assert saved.weights is not None
    shutil.move(saved.weights, others[1] / saved.weights.name)
    assert equal(tensors_of(load_concept(saved.path, others)[0]), tensors_of(e4t()))


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "C:x.safetensors",
        "a\\b.safetensors",
        "a\0.safetensors",
        "x.txt",
        ".",
        "..",
    ],
)
def test_a_second_file_is_never_looked_for_elsewhere(saved: Saved, folders: Places, name: str) -> None:
    def change(told: dict[str, Any]) -> None:
        told["e4t.info"] = json.dumps(json.loads(told["e4t.info"]) | {"weights_file": name})

    rewritten(saved.path, change)
    assert "has a damaged description" in refused(saved.path, folders.weights)


def test_a_second_name_that_no_system_can_have_is_not_found(saved: Saved, folders: Places) -> None:
    def change(told: dict[str, Any]) -> None:
        told["e4t.info"] = json.dumps(json.loads(told["e4t.info"]) | {"weights_file": "\u4e2d" * 200 + ".safetensors"})

    rewritten(saved.path, change)
    assert "could not be looked for" in refused(saved.path, folders.weights)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"PK\3\4" + b"\0" * 100])
def test_what_is_no_safetensors_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    assert "a.safetensors" in refused(tmp_path / "a.safetensors")
