"""Configs: the shipped ones hold the paper's numbers, and every mistake gets one sentence."""

from pathlib import Path

import pytest

from commands.base.settings import ConfigError
from commands.pretrain.config.config_file import CONFIGS, known_keys, load_config
from e4t_core.templates import NEUTRAL, STYLE

SHIPPED = sorted(CONFIGS.glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_config_is_valid_and_named_after_its_domain(path: Path) -> None:
    config = load_config(path)
    assert config.output.folder == f"runs/pretrain/{path.stem}"
    assert f"configs/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "steps", "templates"), [("face", 30000, NEUTRAL), ("cat", 60000, NEUTRAL), ("art", 100000, STYLE)]
)
def test_the_full_size_configs_hold_the_papers_numbers(name: str, steps: int, templates: tuple[str, ...]) -> None:
    config = load_config(Path(name))
    assert config.domain.word == name
    assert config.domain.templates == templates
    assert config.domain.scale == 0.1
    training = config.training
    assert (training.steps, training.batch, training.regularization) == (steps, 16, 0.01)
    assert training.learning_rate == pytest.approx(1.6e-5)
    assert training.rate(0) == training.rate(steps - 1) == training.learning_rate
    assert config.backbone.architecture == "ViT-H-14"
    assert config.backbone.layers == tuple(range(2, 33, 2))


def test_the_second_mini_domain_differs_in_words_alone() -> None:
    face, cat = ((CONFIGS / f"mini_{name}.toml").read_text(encoding="utf-8") for name in ("face", "cat"))
    assert face.replace("face", "cat") == cat


def test_overrides_replace_numbers_texts_and_entries_of_lists() -> None:
    config = load_config(
        Path("face"), ["training.steps=5", "data.sources.1.path=other/faces", 'output.preview_prompts=["{}"]']
    )
    assert config.training.steps == 5
    assert config.data.sources[1].path == "other/faces"
    assert config.output.preview_prompts == ("{}",)


def test_the_rate_rises_over_the_warm_up_and_falls_at_the_end() -> None:
    training = load_config(Path("mini_face"), ["training.steps=1000", "training.warmup=10"]).training
    assert training.rate(0) == pytest.approx(training.learning_rate / 10)
    assert training.rate(400) == training.learning_rate == pytest.approx(2e-4)
    assert training.rate(750) == pytest.approx(training.learning_rate / 2)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.step=5", "no key 'training.step': did you mean 'training.steps'"),
        ("trainning.steps=5", "no key 'trainning.steps': did you mean 'training.steps'"),
        ("training.lamda=0.1", "no key 'training.lamda'"),
        ("training.learning_rate=1e-5", "did you mean 'training.learning_rate_per_sample'"),
        ("data.sources.0.pth=x", "no key 'data.sources.pth': did you mean 'data.sources.path'"),
        ("data.sources.7.path=x", "which has 2"),
        ("steps=5", "did you mean 'training.steps'"),
        ("training.steps", "must be written as section.key=value"),
        ("training.steps=0", "training.steps = 0 must be a whole number of 1 or more"),
        ("training.steps=1.5", "training.steps = 1.5 must be a whole number"),
        ("training.steps=true", "must be a whole number"),
        ("training.regularization=-1", "must be a finite number of 0 or more"),
        ("training.regularization=nan", "must be a finite number"),
        ("training.micro_batch=32", "larger than training.batch = 16"),
        ("training.betas=[0.9]", "must be two numbers"),
        ("training.betas=[0.9, 1.0]", "every value of it a number from 0 to below 1"),
        ("training.precision=bf32", "must be one of fp32, bf16, fp16"),
        ("training.train_encoder=1", "must be true or false"),
        ("domain.word=", "domain.word = '' must be a text that is not empty"),
        ("domain.templates=neutrall", "must be one of"),
        ('domain.templates=["a photo of {} {}"]', "{} once"),
        ("domain.templates=[]", "1 to 64"),
        ('domain.word="human face"', "domain.word = 'human face' must be one word without spaces"),
        ('domain.name="a\\u0007b"', "domain.name = 'a\\x07b' must be a plain file name"),
        ("domain.v_size=100000", "domain.v_size = 100000 must be at least 1 and at most 16384"),
        ("domain.image_size=500", "multiple of 8"),
        ("domain.scale=0", "must be a finite number above 0"),
        ("base.kind=python", "must be written as 'package.module:function'"),
        ('base.path=""', "base.path is empty"),
        ("backbone.layers=[4, 2]", "rising"),
        ("data.sources=[]", "name at least one source"),
        ("data.sources.0.weight=0", "must be a finite number above 0"),
        ("data.sources.0.kind=tar", "must be one of folder, shards, parquet, python"),
        ('output.preview_prompts=["a photo"]', 'must hold "{}" exactly once'),
        ("domain=5", "must be a section"),
        ("domain.name=../../x", "must be a plain file name"),
        ("domain.name=a\\b", "must be a plain file name"),
        ("domain.name=.hidden", "must be a plain file name"),
        (f"domain.name={'a' * 101}", "must be a plain file name"),
    ],
)
def test_a_mistake_is_named_in_one_sentence(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(Path("face"), [override])
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith((".", "?"))


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist: give a TOML file, or one of art, cat, face"):
        load_config(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[training\nsteps = 5")
    with pytest.raises(ConfigError, match="no valid TOML"):
        load_config(broken)
    broken.write_text("[training]\nsteps = 5")
    with pytest.raises(ConfigError, match=r"domain\.name is missing"):
        load_config(broken)


def test_every_key_of_the_sections_is_known() -> None:
    assert {"training.steps", "data.sources.path", "output.folder"} <= set(known_keys())
