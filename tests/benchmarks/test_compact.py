"""What a compact concept takes at Stable Diffusion 1.5's true shapes, and the forms it is compared with."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.compact_concepts import Tuned
from benchmarks.compact_forms import (
    EXACT,
    FORMS,
    Form,
    changed,
    sd15_encoder,
    stock_changes,
)
from benchmarks.compact_plot import plot
from benchmarks.compact_report import BYTES_GATE, Result, markdown
from benchmarks.statistics import Interval
from e4t_core.files.compact_body import CompactSettings, bytes_of, describe, expected_tensors
from e4t_core.methods.e4t.concept_encoder import ConceptEncoder
from e4t_core.stored_difference import StoredDifference, energy_lost

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".dev" / "comfyui")
needs_comfyui = pytest.mark.skipif(not (COMFYUI / "comfy").is_dir(), reason="needs ComfyUI")


@cache
def sizes() -> dict[str, Any]:
    """What the command counts, in a process of its own: ComfyUI's folder stands before ours on the path there."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compact", "--sizes"],
        check=False, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def shapes() -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in sizes()["shapes"].items()}


@needs_comfyui
def test_the_shapes_are_those_of_stable_diffusion() -> None:
    assert sum(math.prod(shape) for shape in shapes().values()) == 859_520_964
    # P and Q of all attention projections, the CLIP features of ViT-H, two words.
    assert sizes()["always"] == 2 * (448_128 + 16 * 1280 + 2 * 768)


@needs_comfyui
def test_a_compact_concept_of_stable_diffusion_takes_at_most_ten_megabytes() -> None:
    described = describe(shapes(), sd15_encoder().difference_shapes(), CompactSettings())
    tensors = sum(math.prod(shape) * dtype.itemsize for shape, dtype in expected_tensors(described).values())
    assert tensors == bytes_of(described)
    text = len(json.dumps(described.to_json()))
    assert tensors + text + sizes()["always"] <= BYTES_GATE
    # The whole header of a file stays below the 1 MiB that ComfyUI's scanner reads.
    assert text < 100_000


@needs_comfyui
def test_smaller_forms_are_smaller() -> None:
    found = sizes()["bytes"]
    assert set(found) == {form.name for form in FORMS}
    assert found["exact"] > 1.7e9
    assert found["rank 26 and 6 in 3 bits"] < BYTES_GATE < found["rank 16 in 8 bits"] < found["rank 64 in 8 bits"]


def tuned() -> tuple[Tuned, ConceptEncoder]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    differences = {"a.attn2.to_k.weight": draw(60, 80), "b.conv1.weight": draw(50, 9, 3, 3), "b.norm.bias": draw(70)}
    domain = ConceptEncoder(2, 6, 9, 5)
    encoder = {key: value + 0.1 for key, value in domain.state_dict().items()}
    return Tuned(differences, encoder, draw(1, 5), draw(1, 2, 6), draw(5), draw(1, 4, 8, 8)), domain


def test_the_exact_form_changes_nothing() -> None:
    concept, domain = tuned()
    differences, encoder = changed(EXACT, concept, domain)
    assert all(torch.equal(differences[name], value) for name, value in concept.differences.items())
    assert all(torch.equal(value, concept.encoder[key]) for key, value in encoder.state_dict().items())


def test_fewer_bits_and_lower_ranks_lose_more() -> None:
    concept, domain = tuned()

    def lost(form: Form) -> float:
        found = changed(form, concept, domain)[0]
        return energy_lost(concept.differences["b.conv1.weight"], found["b.conv1.weight"])

    assert lost(Form("", bits=8)) < lost(Form("", bits=2)) < lost(Form("", bits=1)) < 0.4
    assert lost(Form("", bits=8, rank=32, gain=0)) < lost(Form("", bits=8, rank=8, gain=0)) < 1


def test_layers_that_are_left_out_change_nothing() -> None:
    concept, domain = tuned()
    form = Form("", bits=4, rank=4, kept=("attn2",), vectors=False)
    assert list(changed(form, concept, domain)[0]) == ["a.attn2.to_k.weight"]


def test_a_stock_lora_holds_the_domains_offset_too() -> None:
    concept, _ = tuned()
    offset = torch.ones(60, 80)
    form = Form("", rank=60, vectors=False, static=True, stock=True)
    found = stock_changes(form, concept, {"a.attn2.to_k.weight": StoredDifference.of(offset)})
    assert list(found) == ["a.attn2.to_k.weight", "b.conv1.weight"]
    # Two factors in float16.
    assert energy_lost(concept.differences["a.attn2.to_k.weight"] + offset, found["a.attn2.to_k.weight"]) < 1e-5


def test_forms_have_names_of_their_own() -> None:
    assert len({form.name for form in FORMS}) == len(FORMS)
    assert not any("," in form.name for form in FORMS)


def test_the_table_and_the_picture_show_every_form(tmp_path: Path) -> None:
    one = Interval(1.0, 0.98, 1.02)
    scores = {"NAMED": 0.9, "likeness": 0.7, "PROMPT": 0.95}
    found = [Result(form, 10**7 * (number + 1), one, one, one, scores) for number, form in enumerate(FORMS)]
    table = markdown(found).splitlines()
    assert len(table) == 2 + len(FORMS)
    assert {line.count("|") for line in table} == {9}
    plot(found, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size[0] > 1000


SMALL_RUN = """
import sys, torch
from pathlib import Path
from benchmarks import compact
from benchmarks.arms import Drawer
compact.ROOT = Path(sys.argv[1])
painter = compact.Painter(1)
painter.drawer = Drawer(1, {"steps": 1, "batch": 2})
forms = {form.name: form for form in compact.FORMS}
fitted, exact = forms["rank 26 and 6 in 3 bits fitted"], forms["exact"]
method = compact.host.pack("e4t_core.methods.compact_fit")
settings = method.CompactFitSettings
method.CompactFitSettings = lambda: settings(steps=1, batch=2)
person = painter.people[0]
found = {form.name: painter.changes(person, form)[0] for form in (exact, fitted, forms["tuned at rank 8 in 4 bits"])}
assert all(len(changes) > 100 for changes in found.values())
again = painter.changes(person, fitted)[0]
assert all(torch.equal(value, again[name]) for name, value in found[fitted.name].items())
"""


@needs_comfyui
def test_a_face_is_learned_kept_and_made_small(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SMALL_RUN, str(tmp_path)],
        check=False, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
