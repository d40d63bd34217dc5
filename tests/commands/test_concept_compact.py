"""``python -m commands.concept compact``: one small file of an exact concept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from concept_world import ConceptWorld

from commands.concept.__main__ import main
from e4t_core.files.concept_file import load_concept
from e4t_core.files.concept_saving import Places, save_concept
from e4t_core.files.domain_file import save_domain
from e4t_core.stored_difference import energy_lost
from e4t_core.weight_changes import full_differences

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")


@pytest.fixture
def files(concept_world: ConceptWorld, tmp_path: Path) -> tuple[Path, Path]:
    """An exact concept file, with its second file beside it, and its domain."""
    concept = concept_world.learned("Anna*", 1)
    save_domain(tmp_path / "faces.safetensors", concept_world.domain())
    return save_concept(Places(tmp_path, tmp_path), "anna", concept, "exact").path, tmp_path / "faces.safetensors"


def test_it_is_the_concept_with_a_small_loss_and_needs_its_domain_to_refine(
    concept_world: ConceptWorld, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, domain = files
    arguments = [str(file), "--domain", str(domain), "--name", "small", "--out", str(tmp_path)]
    assert main(["compact", *arguments, "--rank", "1024", "--minor-rank", "1024", "--bits", "8"]) == 0
    assert "Written: " in (said := capsys.readouterr().out) and "embedding:e4t/small" in said
    found, info = load_concept(tmp_path / "small.safetensors", [], lambda _: concept_world.domain())
    assert info.body == "compact" and found.predictor is not None and found.trigger == "Anna*"
    wanted, got = full_differences(concept_world.learned("Anna*", 1).weights), full_differences(found.weights)
    whole = sum(float(stored.value().square().sum()) for stored in wanted.values())
    lost = sum(
        energy_lost(s.value(), got[name].value()) * float(s.value().square().sum()) for name, s in wanted.items()
    )
    assert lost < 0.01 * whole
    assert main(["compact", *arguments, "--rank", "1", "--overwrite"]) == 0
    assert load_concept(tmp_path / "small.safetensors", [])[0].predictor is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"--domain": "other.safetensors"}, "is not the domain of anna.safetensors"),
        ({"--domain": "none.safetensors"}, "was not found"),
        ({"--domain": "anna.safetensors"}, "is not an E4T domain"),
        ({"--name": "../x"}, "cannot be a file's"),
        ({"--rank": "0"}, "rank"),
        ({"--bits": "99"}, "bits"),
        ({"--out": "none/deeper"}, "was not found"),
    ],
)
def test_what_cannot_be_made_small_is_one_sentence(
    concept_world: ConceptWorld,
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    told: str,
) -> None:
    other = concept_world.domain()
    save_domain(
        tmp_path / "other.safetensors", dataclasses.replace(other, info=dataclasses.replace(other.info, scale=2.0))
    )
    options = {"--domain": str(files[1]), "--name": "small", "--out": str(tmp_path)} | changes
    for name in ("--domain", "--out"):
        options[name] = str(tmp_path / options[name])
    arguments = [part for pair in options.items() for part in pair]
    assert main(["compact", str(files[0]), *arguments]) == 1
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("Reading ")]
    assert out == "" and len(lines) == 1 and told in lines[0]


def test_only_an_exact_file_is_taken(
    concept_world: ConceptWorld, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = save_concept(Places(tmp_path, tmp_path), "r", concept_world.learned("Anna*", 1), "recipe").path
    arguments = ["--domain", str(files[1]), "--name", "small", "--out", str(tmp_path)]
    assert main(["compact", str(recipe), *arguments]) == 1
    assert "keeps 'recipe', not 'exact'" in capsys.readouterr().err
