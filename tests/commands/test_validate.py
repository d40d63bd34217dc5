"""``validate``: what is wrong is said before a run starts, all of it, each in one sentence."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from layouts import make_folder, make_shards, picture
from model_headers import backbone_shapes, base_shapes, write_header
from safetensors.torch import load_file, save_file
from small_base import make_base

from commands.pretrain.checks import Findings, validate
from commands.pretrain.config.config_file import load_config
from commands.pretrain.config.sections import Config
from commands.pretrain.disk_room import lacking_room, unusable_places
from commands.pretrain.estimate import BACKWARD
from commands.pretrain.validate import main


@pytest.fixture(scope="module", autouse=True)
def room() -> Iterator[None]:
    """A disk that is nearly empty: what is free where the tests run decides nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, base and backbone that are right."""
    folder = tmp_path_factory.mktemp("run")
    make_shards(folder / "data", [30, 30])
    write_header(folder / "base.safetensors", base_shapes())
    write_header(folder / "backbone.safetensors", backbone_shapes())
    return folder


def settings(place: Path) -> list[str]:
    return [
        "domain.image_size=128",
        f'base.path="{(place / "base.safetensors").as_posix()}"',
        f'backbone.path="{(place / "backbone.safetensors").as_posix()}"',
        f'data.sources=[{{kind = "shards", path = "{(place / "data").as_posix()}"}}]',
        f'output.folder="{(place / "out").as_posix()}"',
        "training.steps=100",
    ]


def config_of(place: Path, *overrides: str) -> Config:
    return load_config(Path("face"), [*settings(place), *overrides])


@pytest.fixture(scope="module")
def findings(place: Path) -> Findings:
    """Of a run that can start."""
    return validate(config_of(place))


def test_a_run_that_can_start_is_estimated(findings: Findings, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert findings.problems == []
    assert findings.estimate is not None
    assert findings.estimate.samples == 1600
    assert findings.estimate.operations["image backbone"] == pytest.approx(2 * 630e6 * 257, rel=0.05)
    assert findings.estimate.networks["image backbone"] == 632_076_800
    with caplog.at_level("INFO"):
        assert main(["--config", "face", "--teraflops", "100", *settings(place)]) == 0
    assert "The run can start." in caplog.text


def test_caching_and_stopped_gradients_cost_less(findings: Findings, place: Path) -> None:
    plain = findings.estimate
    less = ("data.cache_features=true", "training.stop_feature_gradient=true")
    cheaper = validate(config_of(place, *less)).estimate
    large = ("domain.image_size=256", "training.micro_batch=16")
    checkpointed = validate(config_of(place, *large)).estimate
    kept = validate(config_of(place, *large, "training.gradient_checkpointing=false")).estimate
    assert plain and cheaper and kept and checkpointed
    assert cheaper.operations["image backbone"] == cheaper.operations["autoencoder"] == 0
    # Of the feature pass two backward passes and a repeated forward one go, at most.
    saved = plain.operations[BACKWARD] - cheaper.operations[BACKWARD]
    assert 0.5 < saved / plain.operations["feature pass"] <= 3
    assert sum(kept.memory.values()) > sum(checkpointed.memory.values())
    assert kept.seconds(1e12) < checkpointed.seconds(1e12)


BROKEN = {
    "missing base": (["base.path=nowhere.safetensors"], "Base model nowhere.safetensors was not found in"),
    "missing backbone": (["backbone.path=nowhere.safetensors"], "can be had from laion/CLIP-ViT-H-14"),
    "wrong prediction": (
        ["base.prediction=v"],
        "predicts 'epsilon' by its metadata, scheduler or weights: set base.prediction to that, not 'v'",
    ),
    "wrong family": (["base.family=sd2"], "is of the family 'sd1': set base.family to that, not 'sd2'"),
    "too few blocks": (
        ["backbone.layers=[2, 40]"],
        "Block 40 of the image backbone 'ViT-H-14' is to be read, but it has only 32: correct the layers",
    ),
    "wrong width": (["backbone.width=1024"], "has width 1280, but width 1024 is expected: correct the width"),
    "unknown architecture": (["backbone.architecture=ViT-H-41"], "'ViT-H-41' is unknown to the installed open_clip"),
    "other architecture": (
        ["backbone.architecture=ViT-g-14", "backbone.width=1280"],
        "'ViT-g-14' has width 1408, but width 1280",
    ),
    "other size of pictures": (["backbone.image_size=336"], "gives 576 patches, but the image backbone"),
    "a preview's prompt": ([f'output.preview_prompts=["{"very " * 76}{{}}"]'], "is 2 tokens too long: shorten it"),
    "no data": (["data.sources.0.path=nowhere"], "Shard folder nowhere does not exist"),
    "no masks": (["training.use_mask=true"], "the data has no masks"),
    "no folder of diffusers": (["base.kind=diffusers", "base.path=nowhere"], "nowhere was not found in"),
    "a word of two tokens": (["domain.word=xqzvk"], "'xqzvk' must be one token of this base"),
    "no factory": (["base.kind=python", "base.factory=miniworld.pretraining:nothing"], "could not be found"),
    "a factory's options": (
        ['data.sources=[{kind="python", factory="miniworld.pretraining:TrainingPhotos", options={domain="dog"}}]'],
        "refuses its options",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_is_named_in_one_sentence(name: str, place: Path) -> None:
    overrides, says = BROKEN[name]
    (problem,) = validate(config_of(place, *overrides)).problems
    assert says in problem
    assert "\n" not in problem


def test_everything_wrong_is_listed_at_once(place: Path) -> None:
    findings = validate(config_of(place, "base.path=a", "backbone.path=b", "data.sources.0.path=c"), processes=3)
    assert len(findings.problems) == 4


def test_a_base_that_was_cut_is_named(place: Path, tmp_path: Path) -> None:
    cut = write_header(tmp_path / "cut.safetensors", base_shapes())
    with cut.open("r+b") as file:
        file.truncate(cut.stat().st_size - 2)
    (problem,) = validate(config_of(place, f'base.path="{cut.as_posix()}"')).problems
    assert "is truncated" in problem


def test_a_pickle_in_place_of_a_base_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"PK\x03\x04" + bytes(100))
    (problem,) = validate(config_of(place, f'base.path="{(tmp_path / "model.ckpt").as_posix()}"')).problems
    assert "is no safetensors file" in problem


def test_a_base_for_inpainting_is_refused(place: Path, tmp_path: Path) -> None:
    shapes = base_shapes()
    name = "model.diffusion_model.input_blocks.0.0.weight"
    shapes[name] = (shapes[name][0], 9, 3, 3)
    base = write_header(tmp_path / "inpainting.safetensors", shapes)
    (problem,) = validate(config_of(place, f'base.path="{base.as_posix()}"')).problems
    assert "reads 9 channels, as inpaint and edit models do" in problem


def test_corrupt_pictures_are_seen_before_the_start(place: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "data", 60, corrupt=range(0, 60, 3))
    path = (tmp_path / "data").as_posix()
    (problem,) = validate(config_of(place, f'data.sources=[{{kind = "folder", path = "{path}"}}]')).problems
    assert "pictures that were read are corrupt" in problem


@pytest.mark.parametrize("made", [0, 3])
def test_room_is_counted_without_what_is_there(
    made: int, findings: Findings, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(place, f'output.folder="{tmp_path.as_posix()}"', "output.keep_checkpoints=3")
    plain = findings.estimate
    assert plain is not None
    (tmp_path / "checkpoints").mkdir()
    for step in range(made):
        with (tmp_path / "checkpoints" / f"step-{step:08}.safetensors").open("wb") as file:
            file.truncate(plain.checkpoint)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(1.5 * plain.checkpoint)))
    problems = lacking_room(config, plain, 60)
    assert len(problems) == (0 if made else 1) and all("free some" in problem for problem in problems)


def test_room_is_counted_with_the_cache(
    findings: Findings, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = findings.estimate
    assert plain is not None
    cached = config_of(place, f'output.folder="{tmp_path.as_posix()}"', "data.cache_features=true")
    row = 2 * (4 * 16 * 16 + 16 * 1280)
    # What is already there are no checkpoints: one more than are kept has to fit.
    needed = plain.checkpoint * (cached.output.keep_checkpoints + 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed + 60 * row - 1))
    found = validate(cached)
    assert f"cache of features: {60 * row / 1e9:.2f} GB" in found.notes
    (problem,) = found.problems
    assert problem.startswith("data.cache_folder = ")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed + 60 * row))
    assert lacking_room(cached, plain, 60) == []


def test_pictures_that_would_be_enlarged_are_told(findings: Findings, place: Path, tmp_path: Path) -> None:
    assert any("32 of these pictures are smaller" in note for note in findings.notes)
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(picture(number, 128, 200))
    source = f'data.sources=[{{kind = "folder", path = "{tmp_path.as_posix()}"}}]'
    notes = validate(config_of(place, source, "base.path=nowhere")).notes
    assert "data: 4 pictures read, 0 corrupt" in notes and not any("enlarged" in note for note in notes)


def test_the_command_ends_with_status_one_at_an_unknown_key(caplog: pytest.LogCaptureFixture) -> None:
    assert main(["--config", "face", "training.stepps=5"]) == 1
    assert "did you mean 'training.steps'" in caplog.text


@pytest.mark.parametrize("name", ["mini_face", "mini_cat"])
def test_the_mini_worlds_configs_can_start(name: str) -> None:
    findings = validate(load_config(Path(name)))
    assert findings.problems == []
    assert findings.estimate is not None


@pytest.mark.parametrize("setting", ["output.folder", "data.cache_folder"])
def test_a_folder_that_cannot_be_made_is_told(setting: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, says in (
        ("file", "file is no folder"),
        ("file/a/b", "file is no folder"),
        ("a" * 300, "File name too long"),
    ):
        value = f'{setting}="{(tmp_path / path).as_posix()}"'
        config = config_of(place, "data.cache_features=true", value)
        problems = unusable_places(config)
        # The cache lies beside the run, so that a fault of the run's folder is its fault, too.
        assert problems and all("cannot be made" in problem and says in problem for problem in problems)
        assert setting in problems[0]
    assert validate(config).problems == problems


def test_a_config_that_cannot_be_looked_at_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert main(["--config", "a" * 300]) == 1
    assert "cannot be read (File name too long)" in caplog.text


def test_a_base_of_diffusers_is_outlined_from_its_headers(place: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", downsamplings=3)
    config = config_of(place, "base.kind=diffusers", f'base.path="{base.as_posix()}"')
    findings = validate(config)
    assert findings.problems == [] and findings.estimate is not None
    unet = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    assert findings.estimate.networks["UNet"] == sum(weight.numel() for weight in unet.values())
    unet["conv_in.weight"] = unet["conv_in.weight"][:, :3].contiguous()
    save_file(unet, base / "unet" / "diffusion_pytorch_model.safetensors")
    (problem,) = validate(config).problems
    assert "unet of base model folder base" in problem and "mismatched keys: conv_in.weight" in problem
