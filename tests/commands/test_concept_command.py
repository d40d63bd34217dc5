"""``python -m commands.concept``: cards of concept files, and mixes of them."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from concept_world import ConceptWorld, same_concept
from safetensors.torch import save_file
from system_faults import as_a_plain_user

from commands.concept.__main__ import main
from e4t_core.concept import Concept
from e4t_core.files.concept_file import load_concept, read_concept_info
from e4t_core.files.concept_info import RECOVERABLE
from e4t_core.files.concept_saving import About, Places, Saved, save_concept
from e4t_core.mix import mix
from e4t_core.version import VERSION

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")
ROOT = Path(__file__).parents[2]
JPEG = b"\xff\xd8 a picture \xff\xd9"
ABOUT = About("Anna, 2024", "Ben", "CC0", "2026-01-02T03:04:05+01:00", VERSION)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def anna(concept_world: ConceptWorld) -> Concept:
    return concept_world.learned("Anna*", 1)


@pytest.fixture(scope="module")
def ben(concept_world: ConceptWorld) -> Concept:
    return concept_world.learned("Ben*", 2)


@pytest.fixture
def models(tmp_path: Path) -> Places:
    """Folders as ComfyUI has them."""
    places = Places(tmp_path / "models" / "embeddings" / "e4t", tmp_path / "models" / "e4t_concepts")
    for folder in (places.words, places.weights):
        folder.mkdir(parents=True)
    return places


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: its status, and what it printed on either stream."""

    def command(*arguments: object) -> tuple[int, str, str]:
        status = main([str(part) for part in arguments])
        return status, *capsys.readouterr()

    return command


@pytest.fixture
def pair(models: Places, anna: Concept, ben: Concept) -> tuple[Saved, Saved]:
    """Both concepts as exact files."""
    return save_concept(models, "anna", anna, "exact", ABOUT), save_concept(models, "ben", ben, "exact")


def fault(answer: tuple[int, str, str]) -> str:
    """The one sentence of a command that ended with status 1 and printed nothing else."""
    status, out, err = answer
    lines = [line for line in err.splitlines() if not line.startswith("Reading ")]
    assert (status, out, len(lines)) == (1, "", 1), answer
    assert lines[0].endswith(".") and ": " in lines[0], lines[0]
    return lines[0]


# Cards ----------------------------------------------------------------------------------------------------------------


def test_a_card_says_all_that_a_person_asks_of_a_file(models: Places, anna: Concept, run: Run) -> None:
    uri = f"data:image/jpeg;base64,{base64.b64encode(JPEG).decode()}"
    named = dataclasses.replace(anna, base_name="v1-5.safetensors")
    saved = save_concept(models, "anna", named, "exact", dataclasses.replace(ABOUT, thumbnail=uri))
    status, out, err = run("info", saved.path)
    assert (status, err) == (0, "") and saved.weights is not None
    first, *lines = out.splitlines()
    assert first == str(saved.path)
    card = {line[2:11].strip(): line[12:] for line in lines}
    assert card["trigger"] == "Anna*" and card["title"] == "Anna, 2024" and card["method"] == "e4t"
    assert card["keeps"].startswith("exact") and card["word"] == "face"
    assert card["base"] == f"v1-5.safetensors (SD 1, predicts epsilon, {anna.base_fingerprint[:12]})"
    assert card["domain"] == f"tuned ({anna.domain_fingerprint[:12]})"
    losses = f"loss {anna.losses[0]:.4f} -> {anna.losses[-1]:.4f}"
    assert card["learned"] == f"2 steps, {losses}, seed 1"
    assert card["settings"] == "steps 2, learning_rate 0.0001, batch 2, use_mask off"
    main_size, second_size = (path.stat().st_size for path in (saved.path, saved.weights))
    assert card["size"] == f"{main_size / 1e3:.1f} KB, and {saved.weights.name}: {second_size / 1e6:.1f} MB"
    assert card["saved"] == f"2026-01-02T03:04:05+01:00 by version {VERSION}"
    assert (card["author"], card["license"], card["hash"]) == ("Ben", "CC0", anna.fingerprint[:12])
    assert card["preview"].startswith("yes")
    assert RECOVERABLE not in out


def test_a_recipe_says_that_the_photo_can_be_recovered(models: Places, anna: Concept, run: Run) -> None:
    saved = save_concept(models, "anna", anna, "recipe")
    assert RECOVERABLE in run("info", saved.path)[1]
    (table,) = json.loads(run("info", saved.path, "--json")[1])
    assert table["photo_can_be_recovered"] is True and table["second_file"] is None


def test_json_is_the_description_in_the_file_and_what_lies_on_disk(pair: tuple[Saved, Saved], run: Run) -> None:
    status, out, _ = run("info", *(saved.path for saved in pair), "--json")
    assert status == 0
    for table, saved in zip(json.loads(out), pair, strict=True):
        described = json.loads(json.dumps(dataclasses.asdict(read_concept_info(saved.path))))
        assert {name: table[name] for name in described} == described
        assert (table["file"], table["second_file"]) == (str(saved.path), str(saved.weights))
        assert table["bytes"] + table["second_file_bytes"] == saved.bytes
        assert (table["base_family"], table["has_preview"], table["photo_can_be_recovered"]) == ("SD 1", False, False)
        assert table["changed_settings"]["steps"] == 2 and table["changed_sampling"] == {}


def test_a_second_file_is_found_beside_in_comfyui_s_folder_and_where_one_says(
    pair: tuple[Saved, Saved], run: Run, tmp_path: Path
) -> None:
    path, second = pair[0].path, pair[0].weights
    assert second is not None and run("info", path)[0] == 0
    beside = second.rename(path.with_name(second.name))
    assert run("info", path)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    beside.rename(tmp_path / "elsewhere" / second.name)
    assert run("info", path, "--weights-folder", tmp_path / "elsewhere")[0] == 0
    status, out, err = run("info", path)
    assert status == 1 and "missing" in out and "Anna*" in out
    assert re.fullmatch(rf"Concept weights file {second.name} was not found in .*e4t_concepts: copy it there .*\n", err)
    (table,) = json.loads(run("info", path, "--json")[1])
    assert (table["second_file"], table["second_file_bytes"]) == (str(second), None)


@pytest.mark.parametrize("kind", ["missing", "text", "lora", "embedding", "second", "folder", "version"])
def test_what_is_no_concept_is_one_sentence_and_the_other_cards_come_all_the_same(
    pair: tuple[Saved, Saved], run: Run, tmp_path: Path, kind: str
) -> None:
    path, told = tmp_path / "other.safetensors", ""
    if kind == "missing":
        told = "was not found in"
    elif kind == "text":
        path.write_text("no concept at all")
        told = "download|copy|save"
    elif kind == "lora":
        save_file({"lora_unet_down.lora_up.weight": torch.zeros(2, 2)}, path)
        told = "is a LoRA"
    elif kind == "embedding":
        save_file({"clip_l": torch.zeros(1, 768)}, path)
        told = "is a plain embedding"
    elif kind == "second":
        assert pair[0].weights is not None
        path, told = pair[0].weights, "holds the weights of an exact concept"
    elif kind == "folder":
        path.mkdir()
        told = "is a folder"
    else:
        data = pair[0].path.read_bytes()
        path.write_bytes(data.replace(b'"e4t.version":"1"', b'"e4t.version":"9"'))
        told = "has format version '9'"
    assert re.search(told, fault(run("info", path)))
    status, out, err = run("info", path, pair[1].path)
    assert status == 1 and "Ben*" in out and re.search(told, err) and len(err.splitlines()) == 1


# Previews -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_preview(models: Places, anna: Concept) -> Callable[[str], Path]:
    """A concept file with a preview."""

    def saved(uri: str) -> Path:
        return save_concept(models, "anna", anna, "word", dataclasses.replace(ABOUT, thumbnail=uri)).path

    return saved


def test_a_preview_is_written_as_the_bytes_that_the_file_holds(
    with_preview: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    path = with_preview(f"data:image/jpeg;base64,{base64.b64encode(JPEG).decode()}")
    target = tmp_path / "seen.jpg"
    assert run("info", path, "--preview", target)[0] == 0 and target.read_bytes() == JPEG
    target.write_bytes(b"mine")
    assert run("info", path, "--preview", target)[0] == 0
    assert target.read_bytes() == b"mine" and (tmp_path / "seen_00002.jpg").read_bytes() == JPEG
    assert run("info", path, "--preview", target, "--overwrite")[0] == 0 and target.read_bytes() == JPEG


@pytest.mark.parametrize(
    ("uri", "name", "told"),
    [
        ("", "a.jpg", "has no preview"),
        ("https://example.org/a.jpg", "a.jpg", "no JPEG, PNG or WebP picture"),
        ("data:text/html;base64,AAAA", "a.jpg", "no JPEG, PNG or WebP picture"),
        ("data:image/jpeg;base64,!!!!", "a.jpg", "has a damaged preview"),
        ("data:image/jpeg;base64,AAAA", "a.png", r"would be a JPEG: let its name end in \.jpg"),
        ("data:image/jpeg;base64,AAAA", "none/a.jpg", "could not be written"),
    ],
)
def test_a_preview_that_cannot_be_written_is_one_sentence(
    with_preview: Callable[[str], Path], run: Run, tmp_path: Path, uri: str, name: str, told: str
) -> None:
    status, out, err = run("info", with_preview(uri), "--preview", tmp_path / name)
    assert status == 1 and "Anna*" in out and re.search(told, err) and len(err.splitlines()) == 1
    assert not list(tmp_path.glob("*.jpg")) and not list(tmp_path.glob("*.png"))


def test_a_preview_is_of_one_file(pair: tuple[Saved, Saved], run: Run, tmp_path: Path) -> None:
    answer = run("info", pair[0].path, pair[1].path, "--preview", tmp_path / "a.jpg")
    assert "2 files were named" in fault(answer)


# Mixes ----------------------------------------------------------------------------------------------------------------


def test_a_mix_is_the_core_s_bit_for_bit_where_comfyui_finds_it(
    pair: tuple[Saved, Saved], models: Places, anna: Concept, ben: Concept, run: Run
) -> None:
    named = dataclasses.replace(anna, base_name="v1-5.safetensors")
    first = save_concept(models, "anna", named, "exact", overwrite=True)
    files = (first.path, pair[1].path)
    about = ("--title", "both", "--author", "me", "--license", "CC0")
    status, out, _ = run("mix", *files, "--weights", 3, 1, "--name", "both", "--out", models.words, *about)
    assert status == 0 and "S* = 75 % Anna* + 25 % Ben*" in out and "give both files" in out
    found, info = load_concept(models.words / "both.safetensors", [models.weights])
    assert same_concept(found, mix([named, ben], [3, 1], "S*"))
    assert (info.title, info.author, info.license, info.pack_version) == ("both", "me", "CC0", VERSION)
    assert found.base_name == "v1-5.safetensors", "the base's name is lost in the mix"
    assert (models.weights / info.weights_file).is_file() and info.created


def test_a_mix_with_one_weight_of_0_is_the_other_concept(
    pair: tuple[Saved, Saved], ben: Concept, run: Run, tmp_path: Path
) -> None:
    files = [saved.path for saved in pair]
    arguments = ("--weights", 0, 2, "--name", "b", "--out", tmp_path, "--trigger", "Ben*")
    assert run("mix", *files, *arguments)[0] == 0
    found, info = load_concept(tmp_path / "b.safetensors", [])
    assert (tmp_path / info.weights_file).is_file(), "elsewhere than in ComfyUI both files lie side by side"
    assert same_concept(found, ben)


def test_a_mix_of_words_is_a_word(models: Places, anna: Concept, ben: Concept, run: Run) -> None:
    files = [save_concept(models, one.trigger[:-1], one, "word").path for one in (anna, ben)]
    assert run("mix", *files, "--name", "mixed", "--out", models.words)[0] == 0
    found, info = load_concept(models.words / "mixed.safetensors", [])
    assert torch.equal(found.embedding, (anna.embedding + ben.embedding) / 2)
    assert (info.body, list(models.weights.iterdir())) == ("word", [])


def test_a_mix_that_is_there_stays_unless_it_may_be_replaced(
    pair: tuple[Saved, Saved], models: Places, run: Run
) -> None:
    arguments = ("mix", *(saved.path for saved in pair), "--name", "anna", "--out", models.words)
    before = pair[0].path.read_bytes()
    assert run(*arguments)[0] == 0
    assert pair[0].path.read_bytes() == before
    assert read_concept_info(models.words / "anna_00002.safetensors").trigger == "S*"
    assert run(*arguments, "--overwrite")[0] == 0
    assert read_concept_info(pair[0].path).trigger == "S*"
    assert pair[0].weights is not None and not pair[0].weights.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--weights", "1"), "2 files were named, but 1 weights"),
        (("--weights", "1", "-1"), "The weights 1, -1 mix nothing"),
        (("--weights", "0", "0"), "mix nothing"),
        (("--weights", "nan", "1"), "mix nothing"),
        (("--name", "../b"), "cannot be a file's"),
        (("--name", "con"), "is a device on Windows"),
        (("--trigger", "S *"), "prompts give another meaning"),
        (("--trigger", "t" * 101), "101 characters"),
        (("--out", "{0}/none/deeper"), "was not found: make it"),
        (("--out", "{0}/models/embeddings/e4t/anna.safetensors"), "is not a folder"),
        (("--weights-folder", "{0}/none/deeper"), "was not found: make it"),
    ],
)
def test_a_mix_that_cannot_be_is_one_sentence(
    pair: tuple[Saved, Saved], models: Places, run: Run, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    before = sorted(tmp_path.rglob("*.safetensors"))
    usual = ("--name", "b", "--out", models.words)
    given = [part.format(tmp_path) for part in arguments]
    assert told in fault(run("mix", *(saved.path for saved in pair), *usual, *given))
    assert sorted(tmp_path.rglob("*.safetensors")) == before, "something was written"


def test_files_that_cannot_be_mixed_are_named(
    pair: tuple[Saved, Saved], models: Places, anna: Concept, run: Run
) -> None:
    def refused(*files: Path) -> str:
        return fault(run("mix", *files, "--name", "b", "--out", models.words))

    recipe = save_concept(models, "recipe", anna, "recipe").path
    word = save_concept(models, "word", anna, "word").path
    assert f"{recipe.name} is a recipe" in refused(pair[0].path, recipe)
    assert f"{word.name} keeps its fixed word alone" in refused(pair[0].path, word)
    assert "2 to 4 concepts, not of 1" in refused(pair[0].path)
    assert "2 to 4 concepts, not of 5" in refused(*[pair[0].path] * 5)
    assert pair[0].weights is not None
    pair[0].weights.unlink()
    assert "an exact concept is two files" in refused(pair[0].path, pair[1].path)
    other = dataclasses.replace(anna, domain_fingerprint="another")
    assert "belongs to the domain file" in refused(save_concept(models, "c", other, "exact").path, pair[1].path)


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_folder_that_may_not_be_written_to_is_one_sentence(pair: tuple[Saved, Saved], run: Run) -> None:
    # Not below pytest's own folder, which other users may not enter either.
    with tempfile.TemporaryDirectory() as outside:
        place = Path(outside)
        files = [saved.path.rename(place / saved.path.name) for saved in pair]
        for saved in pair:
            assert saved.weights is not None
            saved.weights.rename(place / saved.weights.name)
        (place / "locked").mkdir()
        place.chmod(0o755)
        (place / "locked").chmod(0o555)
        with as_a_plain_user():
            assert "may be written to" in fault(run("mix", *files, "--name", "b", "--out", place / "locked"))
            assert "could not be made" in fault(run("mix", *files, "--name", "b", "--out", place / "locked" / "new"))
            assert not list((place / "locked").iterdir())


# The process ----------------------------------------------------------------------------------------------------------


def test_the_command_line_answers_in_a_process_of_its_own(pair: tuple[Saved, Saved]) -> None:
    command = [sys.executable, "-m", "commands.concept", "info"]
    # A console that knows no more than ASCII.
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    named = pair[0].path.rename(pair[0].path.with_name("änna.safetensors"))
    for arguments, status in (([str(named), "--json"], 0), (["nichts-ä.safetensors"], 1), ([], 2)):
        done = subprocess.run(
            [*command, *arguments], check=False, cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
        if status == 0:
            assert json.loads(done.stdout)[0]["trigger"] == "Anna*"
        elif status == 1:
            assert done.stderr.startswith(r"Concept file nichts-\xe4.safetensors was not found in ")


@pytest.mark.skipif(os.name == "nt", reason="timers of POSIX")
def test_stopping_a_mix_leaves_no_traceback_and_no_file(
    pair: tuple[Saved, Saved], models: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    names = sorted(path.name for path in models.words.iterdir())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        files = [str(saved.path) for saved in pair]
        assert main(["mix", *files, "--name", "b", "--out", str(models.words)]) == 130
    finally:
        signal.signal(signal.SIGALRM, before)
    assert capsys.readouterr().err.splitlines()[-1].startswith("Stopped")
    assert sorted(path.name for path in models.words.iterdir()) == names
