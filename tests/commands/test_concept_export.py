"""``python -m commands.concept export``: a concept as a stock LoRA and embedding, on a base model from a file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from concept_world import ConceptWorld
from safetensors import safe_open
from safetensors.torch import load_file
from small_base import make_base

from commands.concept.__main__ import main
from e4t_core.concept import Concept
from e4t_core.files.concept_file import Places, Saved, save_concept
from e4t_core.files.stock_lora import exact_lora, low_rank_lora
from e4t_core.weight_changes import TotalDifferences

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def anna(concept_world: ConceptWorld) -> Concept:
    return concept_world.learned("Anna*", 1)


@pytest.fixture
def saved(tmp_path: Path, anna: Concept) -> Saved:
    (tmp_path / "files").mkdir()
    return save_concept(Places(tmp_path / "files", tmp_path / "files"), "anna", anna, "exact")


@pytest.fixture
def export(saved: Saved, concept_world: ConceptWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command on Anna's file and its base; its status, and what it printed on either stream."""
    (tmp_path / "models").mkdir()

    def run(*arguments: object, file: Path | None = None) -> tuple[int, str, str]:
        usual = ["export", file or saved.path, "--base", concept_world.folder / "base", "--out", tmp_path / "models"]
        capsys.readouterr()
        status = main([str(part) for part in (*usual, *arguments)])
        return status, *capsys.readouterr()

    return run


def test_a_pair_is_the_core_s_lora_on_that_base_and_the_fixed_word(
    export: Run, concept_world: ConceptWorld, anna: Concept, tmp_path: Path
) -> None:
    status, out, _ = export("--error", "0.2")
    assert status == 0 and "In prompts: embedding:anna" in out and "Note:" not in out
    differences = TotalDifferences(anna.weights, concept_world.base.unet.parameters())
    wanted = low_rank_lora(differences, 0.2, vectors=False)
    found = load_file(tmp_path / "models" / "loras" / "anna.safetensors")
    assert found.keys() == wanted.tensors.keys()
    assert all(torch.equal(found[name], wanted.tensors[name]) for name in found)
    assert f"rank {wanted.rank}, weights off by {100 * wanted.error:.1f} %" in out
    word = load_file(tmp_path / "models" / "embeddings" / "anna.safetensors")["clip_l"]
    assert torch.equal(word, anna.embedding)


def test_the_exact_form_and_the_bundle_hold_what_they_should(
    export: Run, concept_world: ConceptWorld, anna: Concept, tmp_path: Path
) -> None:
    loras, words = tmp_path / "models" / "loras", tmp_path / "models" / "embeddings"
    assert export("--form", "exact", "--name", "whole")[0] == 0
    wanted = exact_lora(TotalDifferences(anna.weights, concept_world.base.unet.parameters())).tensors
    found = load_file(loras / "whole.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)
    assert export("--form", "bundle", "--name", "both", "--rank", 2)[0] == 0
    found = load_file(loras / "both.safetensors")
    assert torch.equal(found["bundle_emb.both.string_to_param.*"], anna.embedding)
    assert (words / "both.safetensors").read_bytes() == (loras / "both.safetensors").read_bytes()
    with safe_open(loras / "both.safetensors", "pt") as file:
        assert (file.metadata()["e4t.form"], file.metadata()["ss_network_dim"]) == ("bundle", "2")


def test_files_that_are_there_stay_unless_they_may_be_replaced(export: Run, tmp_path: Path) -> None:
    loras = tmp_path / "models" / "loras"
    loras.mkdir()
    (loras / "anna.safetensors").write_bytes(b"mine")
    status, out, _ = export("--rank", 1)
    assert status == 0 and "embedding:anna_00002" in out
    assert (loras / "anna.safetensors").read_bytes() == b"mine" and (loras / "anna_00002.safetensors").exists()
    assert export("--rank", 1, "--overwrite")[0] == 0
    assert (loras / "anna.safetensors").read_bytes() != b"mine"


def test_another_base_is_a_note(export: Run, anna: Concept, tmp_path: Path) -> None:
    other = dataclasses.replace(anna, base_fingerprint="another")
    file = save_concept(Places(tmp_path / "files", tmp_path / "files"), "other", other, "exact").path
    status, out, _ = export("--rank", 1, file=file)
    assert status == 0 and "Note: Anna* was learned on another base model than base" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--error", "0"), "--error 0 must be 0.01 to 1"),
        (("--error", "nan"), "--error nan must be"),
        (("--rank", "-1"), "--rank -1 "),
        (("--name", "a/b"), "cannot be a file's"),
        (("--base", "{0}/none"), "none was not found in"),
        (("--base", "{0}/files/anna.safetensors"), "Base model .*anna.safetensors"),
        (("--out", "{0}/none/deeper"), "was not found: make it"),
        (("--out", "{0}/files/anna.safetensors"), "is not a folder"),
    ],
)
def test_an_export_that_cannot_be_is_one_sentence(
    export: Run, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    before = sorted(tmp_path.rglob("*.safetensors"))
    status, out, err = export(*(part.format(tmp_path) for part in arguments))
    lines = [line for line in err.splitlines() if not line.startswith("Reading ")]
    assert (status, out, len(lines)) == (1, "", 1) and re.search(told, lines[0]) and lines[0].endswith("."), err
    assert sorted(tmp_path.rglob("*.safetensors")) == before


def test_what_holds_no_weights_or_another_base_s_is_named(export: Run, anna: Concept, tmp_path: Path) -> None:
    places = Places(tmp_path / "files", tmp_path / "files")
    recipe, word = (save_concept(places, body, anna, body).path for body in ("recipe", "word"))
    assert "is a recipe, which holds no weights yet" in export(file=recipe)[2]
    assert "keeps a word alone, which is a stock embedding as it is" in export(file=word)[2]
    other = make_base(tmp_path / "wider", unet={"block_out_channels": (64, 64)})
    status, _, err = export("--base", other)
    assert status == 1 and re.search(r"Anna\* changes .* of the shape .* in .*wider: name a base of the family", err)
