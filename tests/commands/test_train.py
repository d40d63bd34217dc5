"""``python -m commands.train``: every method learns a folder of photos, and what it writes is what the nodes read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

from safetensors.torch import save_file
from small_base import make_base

from commands.base.diffusers_base import load_base
from commands.train import learning
from commands.train.__main__ import main
from commands.train.crops import AUTO, CROPS, MIDDLE, SUBJECT, squares
from commands.train.photos import Photo, cut, read_photos
from e4t_core.crop import Square
from e4t_core.files.concept_file import load_concept
from e4t_core.files.domain_file import save_domain
from e4t_core.files.file_errors import FileError
from e4t_core.methods.e4t.offset_forms import make_offsets
from e4t_core.methods.e4t.weight_offsets import HYPERNETWORK
from e4t_core.methods.registered import SIBLINGS
from e4t_core.prior import PriorSibling, draw_prior
from e4t_core.subject_search import Subject
from e4t_core.weight_changes import LowRank, full_differences

QUICK = ("--size", "64", "--set", "steps=2", "--set", "batch=2")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), downsamplings=3)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2, 90, 70, 3), np.uint8)
    for name, pixels in zip(("a.png", "b.jpg"), noise, strict=True):
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no photo")
    return folder


def learn(method: str, base: Path, photos: Path, out: Path, *more: str, quick: Sequence[str] = QUICK) -> int:
    status: int = main([method, "--photos", str(photos), "--base", str(base), "--out", str(out), *quick, *more])
    return status


@pytest.mark.parametrize("kind", SIBLINGS, ids=lambda kind: kind.name)
def test_a_concept_of_every_method_is_written(kind: Any, base: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "anna.safetensors"
    prior = ["--set", "prior_weight=0"] if issubclass(kind, PriorSibling) else []
    assert learn(kind.name, base, photos, out, "--trigger", "anna1", "--seed", "3", *prior) == 0
    concept, info = load_concept(out, [out.parent])
    assert (concept.method, concept.trigger, concept.seed, info.title) == (kind.name, "anna1", 3, "anna")
    assert concept.base_name == base.name and len(concept.losses) == 2 and concept.settings.steps == 2
    first = concept.embedding, full_differences(concept.weights)
    assert learn(kind.name, base, photos, out, "--trigger", "anna1", "--seed", "3", *prior, "--overwrite") == 0
    again = load_concept(out, [out.parent])[0]
    assert again.fingerprint == concept.fingerprint and torch.equal(again.embedding, first[0])
    for name, stored in full_differences(again.weights).items():
        assert torch.equal(stored.value(), first[1][name].value())


def test_prior_pictures_are_drawn_once_and_are_the_base_s(
    base: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def counted(*given: Any) -> torch.Tensor:
        drawn.append(len(given[2]))
        return draw_prior(*given)

    monkeypatch.setattr(learning, "draw_prior", counted)
    wanted = ("--set", "prior_weight=1", "--set", "prior_pictures=3")
    for number in range(2):
        assert learn("lora", base, photos, tmp_path / f"{number}.safetensors", *wanted) == 0
    assert drawn == [4] and len(list((tmp_path / "e4t_prior").iterdir())) == 1
    one, two = (load_concept(tmp_path / f"{n}.safetensors", [tmp_path])[0] for n in range(2))
    assert one.fingerprint == two.fingerprint and all(isinstance(change, LowRank) for change in one.weights)
    for number, change in enumerate((("--set", "prior_seed=1"), ("--class-word", "dog"), ("--size", "128"))):
        assert learn("lora", base, photos, tmp_path / f"other{number}.safetensors", *wanted, *change) == 0
    assert drawn == [4] * 4
    # A folder that cannot be written to: the concept is learned all the same.
    (tmp_path / "file").touch()
    assert learn("lora", base, photos, tmp_path / "last.safetensors", *wanted, "--prior", str(tmp_path / "file")) == 0
    assert drawn == [4] * 5 and (tmp_path / "last.safetensors").is_file()


def test_a_domain_s_concept_is_learned_too(concept_world: Any, photos: Path, tmp_path: Path, capsys: Any) -> None:
    domain, tower, out = (tmp_path / f"{name}.safetensors" for name in ("faces", "tower", "anna"))
    save_domain(domain, concept_world.domain())
    save_file({name: value.contiguous() for name, value in concept_world.tower.state_dict().items()}, tower)
    quick = ("--domain", str(domain), "--size", "64", "--set", "steps=1", "--set", "batch=2", "--set", "use_mask=off")
    base = concept_world.folder / "base"
    assert learn("e4t", base, photos, out, quick=quick) == 1
    assert "does not hold its image backbone: name that by --backbone FILE" in capsys.readouterr().err
    assert learn("e4t", base, photos, out, "--backbone", str(tower), quick=quick) == 0
    concept, _ = load_concept(out, [tmp_path])
    # Two photos take half as many steps more.
    assert concept.method == "e4t" and concept.predictor is not None and len(concept.losses) == 2


def test_a_hypernetwork_s_domain_gives_a_concept_at_once_and_tunes_it_if_told_to(
    concept_world: Any, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    domain, plain, tower = (tmp_path / f"{name}.safetensors" for name in ("hyper", "plain", "tower"))
    usual = concept_world.domain()
    width = usual.info.backbone.width
    info = dataclasses.replace(usual.info, offset_form=HYPERNETWORK, v_size=width)
    of_photos = dataclasses.replace(usual, info=info, offsets=make_offsets(HYPERNETWORK, usual.info.projections, width))
    save_domain(domain, of_photos)
    save_domain(plain, usual)
    save_file({name: value.contiguous() for name, value in concept_world.tower.state_dict().items()}, tower)
    quick = ("--domain", str(domain), "--backbone", str(tower), "--size", "64", "--set", "use_mask=off")
    base, once, tuned = concept_world.folder / "base", tmp_path / "once.safetensors", tmp_path / "tuned.safetensors"
    assert learn("hypernetwork", base, photos, once, quick=quick) == 0
    assert learn("hypernetwork", base, photos, tuned, "--set", "steps=1", "--set", "batch=2", quick=quick) == 0
    concepts = [load_concept(path, [tmp_path])[0] for path in (once, tuned)]
    assert [(one.method, one.settings.steps, len(one.losses)) for one in concepts] == [
        ("hypernetwork", 0, 0),
        ("hypernetwork", 2, 2),
    ]
    # All else is as the domain's preset says.
    assert dataclasses.asdict(concepts[0].settings) == {
        **dataclasses.asdict(of_photos.info.preset), "steps": 0, "more_steps": 0.0, "use_mask": False,
    }  # fmt: skip
    assert not torch.equal(concepts[0].embedding, concepts[1].embedding)
    assert learn("hypernetwork", base, photos, once, quick=("--domain", str(plain))) == 1
    assert "use E4T Personalize, or a domain that was trained with" in capsys.readouterr().err


def learned_from(folder: Path, size: int, masks: Path | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    photos = read_photos(folder, masks)
    return cut(photos, squares(photos, MIDDLE, 0.25, None), size)


def test_masks_are_read_by_their_photos_names(photos: Path, tmp_path: Path) -> None:
    assert learned_from(photos, 64)[1] is None
    painted = tmp_path / "masks"
    painted.mkdir()
    half = np.zeros((90, 70), np.uint8)
    half[:45] = 255
    # Of another size than its photo: it is scaled.
    Image.fromarray(half).resize((35, 45)).save(painted / "b.png")
    images, masks = learned_from(photos, 64, painted)
    assert images.shape == (2, 3, 64, 64) and masks is not None and masks.shape == (2, 1, 64, 64)
    # Its box is the upper half, so the crop is the upper square.
    assert masks[0].min() == 1 and masks[1, 0, :38].min() == 1 and masks[1, 0, 45:].max() == 0
    assert read_photos(photos, painted)[1].usual_square(0.25) == Square(0, 0, 70)
    Image.fromarray(half).save(painted / "c.png")
    with pytest.raises(FileError, match="c.png is a mask of no photo"):
        read_photos(photos, painted)


def test_a_mask_off_center_moves_the_crop_there(tmp_path: Path) -> None:
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[30:70, 240:280] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(pixels[..., 0]).save(tmp_path / "masks" / "a.png")
    images, masks = learned_from(tmp_path, 64, tmp_path / "masks")
    assert masks is not None and masks[0, 0, 12:52, 12:52].min() > 0.7 and images[0, :, 24:40, 24:40].min() > 0.7


def test_what_is_transparent_is_not_learned(tmp_path: Path) -> None:
    pixels = np.full((64, 64, 4), 200, np.uint8)
    pixels[:, :32, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    _, masks = learned_from(tmp_path, 64)
    assert masks is not None and masks[0, 0, :, :32].max() == 0 and masks[0, 0, :, 32:].min() > 0
    pixels[..., 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(FileError, match="leaves nothing"):
        read_photos(tmp_path)


def test_a_photo_that_is_not_square_is_cropped_where_its_subject_is_found(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (80, 80), "red").save(photos / "c.png")
    read = read_photos(photos)
    asked: list[str] = []

    def find(photo: Photo) -> list[Subject] | None:
        asked.append(photo.file.name)
        return {"a.png": [Subject(Square(0, 0, 50), 0.5), Subject(Square(20, 10, 60), 0.6)], "b.jpg": []}.get(
            photo.file.name, [Subject(Square(4, 4, 70), 0.5)]
        )

    middle, whole = Square(10, 0, 70), Square(0, 0, 80)
    assert squares(read, AUTO, 0.25, find) == [Square(20, 10, 60), middle, whole] and asked == ["a.png", "b.jpg"]
    assert "2 subjects were found; the largest is learned" in caplog.text
    assert "b.jpg: no subject was found, so its middle is learned" in caplog.text
    # A portrait stays as it came in, though the search frames it a little closer.
    assert squares(read, SUBJECT, 0.25, find)[2] == whole and asked[2:] == ["a.png", "b.jpg", "c.png"]
    assert squares(read, MIDDLE, 0.25, find) == [middle, middle, whole] and len(asked) == 5
    assert squares(read, AUTO, 0.25, lambda photo: None) == [middle, middle, whole]
    assert "too little memory to look for the subject" in caplog.text


def test_a_domain_looks_for_its_subject_on_the_base_that_diffusers_read(
    concept_world: Any, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A random domain finds nobody in noise, and says so; then it learns the middle, as it does where it is told to."""
    domain, tower = (tmp_path / f"{name}.safetensors" for name in ("faces", "tower"))
    made = concept_world.domain()
    subject = dataclasses.replace(made.info.preset, use_mask=True, find_subject=True)
    save_domain(domain, dataclasses.replace(made, info=dataclasses.replace(made.info, preset=subject)))
    save_file({name: value.contiguous() for name, value in concept_world.tower.state_dict().items()}, tower)
    quick = ("--domain", str(domain), "--backbone", str(tower), "--size", "64", "--set", "steps=0")
    concepts = {}
    for crop in CROPS:
        out = tmp_path / f"{crop}.safetensors"
        assert learn("e4t", concept_world.folder / "base", photos, out, "--crop", crop, quick=quick) == 0
        concepts[crop] = load_concept(out, [tmp_path])[0].embedding
        said = "no subject was found" in caplog.text
        assert said == (crop != MIDDLE)
        caplog.clear()
    assert torch.equal(concepts[AUTO], concepts[MIDDLE]) and torch.equal(concepts[SUBJECT], concepts[MIDDLE])


@pytest.mark.parametrize(
    ("method", "more", "fault"),
    [
        ("lora", ("--set", "ranks=2"), "'ranks=2' must be NAME=VALUE, with a name of steps"),
        ("lora", ("--set", "rank=many"), "rank must be a whole number from 1 to 128"),
        ("lora", ("--set", "rank=0"), "rank = 0 must be a whole number"),
        ("lora", ("--size", "100"), "--size 100 must be a multiple of 64"),
        ("lora", ("--trigger", "a word"), "choose a word"),
        ("lora", ("--class-word", "facelessness"), "facelessness"),
        ("lora", ("--domain", "x.safetensors"), "has no domain: leave --domain out"),
        ("lora", ("--crop", "subject"), "--crop subject needs a domain"),
        ("e4t", (), "needs --domain"),
        ("hypernetwork", (), "needs --domain"),
    ],
)
def test_bad_input_gets_one_sentence_and_writes_nothing(
    method: str, more: tuple[str, ...], fault: str, base: Path, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out" / "anna.safetensors"
    assert learn(method, base, photos, out, *more) == 1
    error = capsys.readouterr().err
    assert fault in error and "Traceback" not in error
    assert not list(tmp_path.rglob("anna*"))


def test_a_folder_without_photos_and_one_with_a_damaged_photo_are_named(
    base: Path, tmp_path: Path, photos: Path, capsys: Any
) -> None:
    empty = tmp_path / "empty"
    assert learn("lora", base, empty, tmp_path / "x.safetensors") == 1
    empty.mkdir()
    assert learn("lora", base, empty, tmp_path / "x.safetensors") == 1
    (photos / "c.png").write_bytes(b"no picture")
    assert learn("lora", base, photos, tmp_path / "x.safetensors") == 1
    lines = capsys.readouterr().err.splitlines()
    assert ["name a folder" in lines[0], "holds no photo" in lines[1], "c.png cannot be decoded" in lines[2]] == [
        True
    ] * 3


def test_its_results_are_those_of_the_base_that_it_read(base: Path, photos: Path, tmp_path: Path) -> None:
    """The base on disk and in memory is what it was; a LoRA of no steps changes nothing."""
    before = {file: file.read_bytes() for file in base.rglob("*.safetensors")}
    assert learn("dreambooth", base, photos, tmp_path / "x.safetensors", "--set", "prior_weight=0") == 0
    assert all(file.read_bytes() == content for file, content in before.items())
    concept, _ = load_concept(tmp_path / "x.safetensors", [tmp_path])
    shapes = {name: tuple(value.shape) for name, value in load_base(base).unet.parameters().items()}
    assert {change.name: change.shape for change in concept.weights}.items() <= shapes.items()
