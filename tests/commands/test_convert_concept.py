"""``python -m commands.convert DIRECTORY --concept NAME --base MODEL``: a tuned directory becomes a concept file."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from concept_world import ConceptWorld, same_concept, tensors_of
from mkshing import CONFIG, tuned_config, write
from PIL import Image
from safetensors.torch import save_file

from commands.base.diffusers_base import load_base
from commands.convert.__main__ import main
from commands.convert.mkshing_directory import read_directory
from commands.convert.to_concept import to_concept
from commands.convert.tuned_concept import tuned_text
from commands.pretrain.data.pictures import decode, to_float
from e4t_core.concept import Concept
from e4t_core.files.concept_file import load_concept
from e4t_core.files.concept_info import ConceptInfo
from e4t_core.files.domain_file import load_domain
from e4t_core.methods.e4t.clip_backbone import ClipBackbone
from e4t_core.photos import Photos
from e4t_core.weight_changes import full_differences

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def convert(concept_world: ConceptWorld, tmp_path: Path) -> Callable[..., int]:
    """The command on a directory of the small world, with a concept "me"; more arguments may follow."""

    def run(*arguments: object, directory: Path | None = None) -> int:
        usual = ["-o", tmp_path, "--concept", "me", "--base", concept_world.folder / "base"]
        usual += ["--architecture", concept_world.architecture]
        return main([str(part) for part in (directory or concept_world.folder / "tuned", *usual, *arguments)])

    return run


def loaded(folder: Path, name: str = "me") -> tuple[Concept, ConceptInfo]:
    return load_concept(folder / f"{name}.safetensors", [])


def by_hand(world: ConceptWorld, photo: Path, license: str = "", **options: Any) -> Concept:
    """What :func:`to_concept` makes of the directory, each part put together here."""
    base, domain = world.base, world.domain(license)
    pixels = to_float(decode(photo.read_bytes(), 64).image)[None]
    features = ClipBackbone(domain.info.backbone, world.tower.state_dict()).cls_features(pixels)
    source = read_directory(world.folder / "tuned")
    concept = to_concept(source, domain, base.unet, base.text, Photos(base.encode(pixels), features), **options)
    return dataclasses.replace(concept, base_name="base")


def test_the_file_is_to_concept_s_concept_bit_for_bit(
    concept_world: ConceptWorld, convert: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert("--license", "MIT") == 0
    found, info = loaded(tmp_path)
    wanted = by_hand(concept_world, concept_world.folder / "tuned" / "domain.png", license="MIT")
    assert same_concept(found, wanted)
    assert (found.trigger, found.word, found.prediction, found.base_name) == ("*s", "face", "epsilon", "base")
    assert found.start is not None and torch.equal(found.start, concept_world.base.text.word("face"))
    assert full_differences(found.weights).keys() == concept_world.unet.keys()
    assert (info.body, info.license, found.settings.steps) == ("exact", "MIT", 0)
    domain = load_domain(tmp_path / "tuned.safetensors")
    assert (found.domain_name, found.domain_fingerprint) == ("tuned", domain.fingerprint)
    said = capsys.readouterr().out
    assert len(re.findall("^Written: ", said, re.MULTILINE)) == 3
    assert "embedding:e4t/me" in said and "tuned by mkshing" in said


def test_a_concept_that_nothing_here_learns_again_has_no_recipe(concept_world: ConceptWorld, tmp_path: Path) -> None:
    concept = by_hand(concept_world, concept_world.photo(tmp_path / "photo.png"))
    assert concept.recipe is None, "its recipe would give another concept, without the tuned UNet"


def test_another_photo_and_trigger_are_those_that_are_named(
    concept_world: ConceptWorld, convert: Callable[..., int], tmp_path: Path
) -> None:
    # Neither square nor of the size that was trained: the middle of it is read.
    photo = concept_world.photo(tmp_path / "photo.png", seed=5, size=(120, 90))
    assert convert("--photo", photo, "--trigger", "Anna*") == 0
    found, _ = loaded(tmp_path)
    assert same_concept(found, by_hand(concept_world, photo, trigger="Anna*"))
    own = by_hand(concept_world, concept_world.folder / "tuned" / "domain.png", trigger="Anna*")
    assert not torch.equal(found.embedding, own.embedding), "the photo changes nothing, so this test is blind"


def test_files_go_where_comfyui_has_them_if_the_domain_does(convert: Callable[..., int], tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in ("e4t_domains", "embeddings"):
        (models / name).mkdir(parents=True)
    assert convert("-o", models / "e4t_domains") == 0
    written = {path.parent.relative_to(models).as_posix() for path in models.rglob("*.safetensors")}
    assert written == {"e4t_domains", "embeddings/e4t", "e4t_concepts"}
    assert load_concept(models / "embeddings/e4t/me.safetensors", [models / "e4t_concepts"])[0].trigger == "*s"
    (tmp_path / "words").mkdir()
    folders = ("--concept-folder", tmp_path / "words", "--weights-folder", tmp_path / "weights")
    assert convert("-o", models / "e4t_domains", "--overwrite", *folders) == 0
    assert load_concept(tmp_path / "words" / "me.safetensors", [tmp_path / "weights"])[0].trigger == "*s"


def test_half_precision_makes_a_concept_of_the_domain_that_is_in_the_file(
    convert: Callable[..., int], tmp_path: Path
) -> None:
    assert convert("--half") == 0
    found, _ = loaded(tmp_path)
    domain = load_domain(tmp_path / "tuned.safetensors")
    assert found.domain_fingerprint == domain.fingerprint
    held = tensors_of(found)
    for name, value in domain.encoder.state_dict().items():
        assert torch.equal(held[f"predictor.0.{name}"], value)


def test_an_early_directory_of_tuned_offsets_changes_no_other_weight(
    concept_world: ConceptWorld, convert: Callable[..., int], tmp_path: Path
) -> None:
    early = write(
        tmp_path / "early", tuned_config(), encoder=concept_world.encoder, weight_offsets=concept_world.offsets
    )
    concept_world.photo(early / "domain.png")
    assert convert(directory=early) == 0
    found, _ = loaded(tmp_path)
    assert full_differences(found.weights) == {} and len(tensors_of(found)) > 2 * 24


def test_a_tuned_text_encoder_reads_the_prompts(
    concept_world: ConceptWorld, convert: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = getattr(concept_world.base.text.network, "text_model", concept_world.base.text.network)
    draw = torch.Generator().manual_seed(9)
    tuned = {
        f"text_model.{name}": value + 0.01 * torch.randn(value.shape, generator=draw)
        for name, value in inner.state_dict().items()
        if "position_ids" not in name
    }
    rows = "text_model.embeddings.token_embedding.weight"
    files: dict[str, Any] = {"encoder": concept_world.encoder, "unet": concept_world.unet | concept_world.offsets}
    # The placeholder's row comes last.
    extended = tuned | {rows: torch.cat([tuned[rows], torch.ones(1, 768)])}
    folder = write(tmp_path / "text", tuned_config(), **files, text_encoder=extended)
    concept_world.photo(folder / "domain.png")
    assert convert(directory=folder) == 0
    found, _ = loaded(tmp_path)
    text = tuned_text(load_base(concept_world.folder / "base"), read_directory(folder))
    assert found.start is not None and torch.equal(found.start, text.word("face"))
    assert not torch.equal(found.start, concept_world.base.text.word("face"))
    assert torch.equal(text.network.get_input_embeddings().weight, tuned[rows])
    assert any("Load CLIP" in note for note in found.notes)
    del extended["text_model.final_layer_norm.bias"]
    write(folder, tuned_config(), text_encoder=extended)
    capsys.readouterr()
    assert convert("--overwrite", directory=folder) == 1
    assert re.search(r"text_encoder\.pt.* lacks 1 of .*final_layer_norm\.bias", capsys.readouterr().err)


def test_the_image_backbone_may_come_from_a_file(
    concept_world: ConceptWorld, convert: Callable[..., int], tmp_path: Path
) -> None:
    # As open_clip's files have it: with the last projection, which is not read.
    tower = {f"visual.{name}": value.contiguous() for name, value in concept_world.tower.state_dict().items()}
    save_file(tower | {"visual.proj": torch.ones(8, 4)}, tmp_path / "backbone.safetensors")
    (tmp_path / "out").mkdir()
    assert convert("-o", tmp_path / "out", "--backbone-file", tmp_path / "backbone.safetensors") == 0
    assert convert() == 0
    assert same_concept(loaded(tmp_path / "out")[0], loaded(tmp_path)[0])


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--photo", "{0}/none.png"), "Photo none.png was not found in .*: put it there, or name it with --photo"),
        (("--photo", "{0}/text.png"), "could not be read .it is no JPEG, PNG, WEBP, BMP picture"),
        (("--photo", "{0}/cut.png"), "could not be read"),
        (("--base", "{0}/none"), "none was not found in"),
        (("--base", "{0}/text.png"), "Base model .*text.png"),
        (("--backbone-file", "{0}/none.safetensors"), "Image backbone file none.safetensors was not found"),
        (("--backbone-file", "{0}/other.safetensors"), "do not fit it"),
        (("--concept", "../me"), "cannot be a file's"),
        (("--concept", "tuned"), "is the domain's own file: give another --concept"),
        (("--concept", "Tuned"), "is the domain's own file"),
        (("--trigger", "a b"), "prompts give another meaning"),
        (("--concept-folder", "{0}/none/deeper"), "was not found: make it"),
        (("--weights-folder", "{0}/text.png"), "is not a folder"),
    ],
)
def test_what_a_concept_lacks_is_one_sentence_and_nothing_is_written(
    convert: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    told: str,
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:1000])
    save_file({"conv1.weight": torch.zeros(2, 3, 4, 4)}, tmp_path / "other.safetensors")
    before = sorted(tmp_path.iterdir())
    assert convert(*(part.format(tmp_path) for part in arguments)) == 1
    text = capsys.readouterr().err.split("Not converted: ", 1)[1].strip()
    assert re.search(told, text) and text.endswith(".") and "\n" not in text, text
    assert sorted(tmp_path.iterdir()) == before


def test_a_directory_that_is_not_tuned_or_of_another_base_holds_no_concept(
    concept_world: ConceptWorld, convert: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = write(
        tmp_path / "pretrained", CONFIG, encoder=concept_world.encoder, weight_offsets=concept_world.offsets
    )
    assert convert(directory=pretrained) == 1
    assert "is pre-trained, not tuned" in capsys.readouterr().err
    unet = concept_world.unet | concept_world.offsets
    unet["conv_in.weight"] = unet["conv_in.weight"][:, :3]
    other = write(tmp_path / "other", tuned_config(), encoder=concept_world.encoder, unet=unet)
    concept_world.photo(other / "domain.png")
    assert convert(directory=other) == 1
    assert "is not the UNet of this base model (1 tensors differ" in capsys.readouterr().err
    placeholder = {**tuned_config(), "pretrained_args": CONFIG | {"placeholder_token": "<me>"}}
    (other / "config.json").write_text(json.dumps(placeholder))
    assert convert(directory=other) == 1
    assert "The trigger '<me>' holds '<'" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_concept_needs_a_name_and_a_base(concept_world: ConceptWorld, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (("--concept", "me"), ("--base", "somewhere")):
        with pytest.raises(SystemExit) as ended:
            main([str(concept_world.folder / "tuned"), *given])
        assert ended.value.code == 2 and "both --concept NAME and --base MODEL" in capsys.readouterr().err


def test_without_diffusers_it_says_which_python_has_it_and_domains_are_made_all_the_same(
    concept_world: ConceptWorld, tmp_path: Path
) -> None:
    code = "import sys; sys.modules['diffusers'] = None; from commands.convert.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, str(concept_world.folder / "tuned"), "-o", str(tmp_path)]
    concept = ["--concept", "me", "--base", str(concept_world.folder / "base")]
    done = subprocess.run([*command, *concept], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "without the package diffusers: run this with the Python of the clone's .venv" in done.stderr
    assert not list(tmp_path.iterdir())
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "tuned.safetensors").is_file()
    assert "--concept NAME and --base make a concept file of it" in done.stdout
