"""Thin changes of weights, as LoRA learns them, in an exact concept's second file: kept bit for bit, and refused where they are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kept import base as base_of_width
from kept import places
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_photos
from tuned import quick

from e4t_core.files.concept_file import ConceptFileError, load_concept
from e4t_core.files.concept_saving import Places, save_concept
from e4t_core.methods.lora import LoRA
from e4t_core.training import train
from e4t_core.weight_changes import LowRank


def saved_lora(folder: Path) -> tuple[Places, Path]:
    """An exact concept of thin changes, and its second file."""
    settings = quick(LoRA, prior_weight=0.0, rank=2)
    concept = train(LoRA("face"), base_of_width(), tiny_photos(), settings, 5)
    there = places(folder)
    saved = save_concept(there, "thin", concept, "exact")
    assert saved.weights is not None
    again, _ = load_concept(saved.path, [there.weights])
    assert again.fingerprint == concept.fingerprint and torch.equal(again.embedding, concept.embedding)
    for one, two in zip(sorted(concept.weights, key=_name), sorted(again.weights, key=_name), strict=True):
        assert isinstance(one, LowRank) and isinstance(two, LowRank) and one.name == two.name and one.shape == two.shape
        assert torch.equal(one.up, two.up) and torch.equal(one.down, two.down)
    return there, saved.weights


def _name(change: Any) -> str:
    return str(change.name)


def test_thin_changes_are_kept_bit_for_bit(tmp_path: Path) -> None:
    _, second = saved_lora(tmp_path)
    assert all(name.startswith("factors.") for name in load_file(second))


@pytest.mark.parametrize(
    "damage", ["up alone", "another rank", "no columns", "a number type", "a name", "NaN", "twice"]
)
def test_factors_that_cannot_be_are_refused(tmp_path: Path, damage: str) -> None:
    there, second = saved_lora(tmp_path)
    with safe_open(second, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(second)
    up = next(name for name in tensors if name.endswith("to_k.weight.up"))
    down = up.removesuffix("up") + "down"
    if damage == "up alone":
        del tensors[down]
    elif damage == "another rank":
        tensors[down] = tensors[down][:1].clone()
    elif damage == "no columns":
        tensors[up], tensors[down] = tensors[up][:, :0].clone(), tensors[down][:0].clone()
    elif damage == "a number type":
        tensors[up] = tensors[up].half()
    elif damage == "a name":
        tensors["factors.A/b.up"], tensors["factors.A/b.down"] = tensors.pop(up), tensors.pop(down)
    elif damage == "NaN":
        tensors[up][0, 0] = float("nan")
    else:
        tensors[up.removesuffix(".up").replace("factors.", "weights.")] = torch.zeros(12, 768)
        tensors["scales"] = torch.ones(1)
    save_file(tensors, second, metadata)
    with pytest.raises(ConceptFileError):
        load_concept(there.words / "thin.safetensors", [there.weights])
