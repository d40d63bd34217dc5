"""The training loop: exact resume, any number of micro-batches and processes, what trains, and what it writes."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from small_base import config_of, overrides
from training_runs import losses, same, start, train

from commands.base.settings import ConfigError
from commands.pretrain.__main__ import main
from commands.pretrain.data.pictures import DataError
from commands.pretrain.run.training import Training
from e4t_core.files.domain_file import load_domain
from e4t_core.fingerprint import fingerprint

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(place: Path, tmp_path: Path) -> None:
    more = ("training.ema=0.9", "training.clip=1.0")
    whole = train(place, tmp_path / "whole", *more)
    train(place, tmp_path / "parts", *more, "training.steps=2")
    parts = train(place, tmp_path / "parts", *more)
    assert same(whole, parts)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    files = [load_file(tmp_path / out / "face.safetensors") for out in ("whole", "parts")]
    assert same(*files)


def test_a_run_learns_and_logs_what_it_does(place: Path, tmp_path: Path) -> None:
    train(place, tmp_path, "training.steps=12", "training.batch=8", "output.log_every=4")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert lines[-1]["diffusion"] < lines[0]["diffusion"]
    assert lines[-1]["weight offset rms"] > lines[0]["weight offset rms"] > 0
    for line in lines:
        assert line["loss"] == pytest.approx(line["diffusion"] + line["λ term"])
        assert line["λ term"] == pytest.approx(0.01 * line["word offset"] ** 2, rel=1e-3)
    assert not (tmp_path / "previews").exists()


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_change_nothing_but_rounding(micro: int, place: Path, tmp_path: Path) -> None:
    whole = train(place, tmp_path / "a", "training.steps=2")
    split = train(place, tmp_path / "b", "training.steps=2", f"training.micro_batch={micro}")
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), rel=1e-5)
    # Adam's first steps turn a gradient into its sign, so a rounding of 0 is a whole step: compare what is large.
    assert (whole["encoder.final.weight"] - split["encoder.final.weight"]).abs().median() < 1e-6


def test_gradient_checkpointing_changes_nothing(place: Path, tmp_path: Path) -> None:
    train(place, tmp_path / "a", "training.steps=2")
    train(place, tmp_path / "b", "training.steps=2", "training.gradient_checkpointing=true")
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), rel=1e-6)


def test_two_processes_do_what_one_does_with_the_whole_batch(place: Path, tmp_path: Path) -> None:
    train(place, tmp_path / "one")
    process = start(place, tmp_path / "two", "training.micro_batch=1", processes=2)
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-4)
    assert (tmp_path / "two" / "face.safetensors").exists()


def test_only_the_last_checkpoints_are_kept(place: Path, tmp_path: Path) -> None:
    train(place, tmp_path, "training.steps=6", "output.checkpoint_every=1", "output.keep_checkpoints=2")
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000005.safetensors", "step-00000006.safetensors"]


def test_cached_features_train_as_live_ones_do(place: Path, tmp_path: Path) -> None:
    train(place, tmp_path / "live")
    train(place, tmp_path / "cached", "data.cache_features=true")
    assert losses(tmp_path / "live") == pytest.approx(losses(tmp_path / "cached"), rel=1e-3)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cached" / "features").rglob("latents.f16")}
    assert len(kept) == 1
    train(place, tmp_path / "cached", "data.cache_features=true", "training.steps=5")
    assert len(list((tmp_path / "cached" / "features").iterdir())) == 1


def test_half_precision_and_workers_train_as_the_plain_run_does(place: Path, tmp_path: Path) -> None:
    train(place, tmp_path / "plain")
    train(place, tmp_path / "half", "training.precision=bf16", "data.workers=2", "training.gradient_checkpointing=true")
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "half"), rel=0.03)


def test_masks_of_pictures_count_where_they_are_asked_for(place: Path, tmp_path: Path) -> None:
    for number in range(8):
        drawn = Image.effect_noise((64, 64), 99).convert("RGBA")
        drawn.putalpha(Image.new("L", (64, 64), 0))
        drawn.paste((number * 30, 80, 90, 255), (0, 0, 32, 64))
        (tmp_path / "data").mkdir(exist_ok=True)
        drawn.save(tmp_path / "data" / f"{number}.png")
    path = (tmp_path / "data").as_posix()
    source = f'data.sources=[{{kind = "folder", path = "{path}", alpha_mask = true}}]'
    train(place, tmp_path / "whole", source)
    train(place, tmp_path / "masked", source, "training.use_mask=true")
    train(place, tmp_path / "cached", source, "training.use_mask=true", "data.cache_features=true")
    assert losses(tmp_path / "whole") != pytest.approx(losses(tmp_path / "masked"), rel=1e-3)
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "masked"), rel=1e-3)


def test_the_base_is_frozen(place: Path, tmp_path: Path) -> None:
    training = Training(config_of(place, tmp_path))
    networks = (
        training.extractor.base.unet.network,
        training.extractor.base.text.network,
        training.extractor.base.vae.network,
        training.extractor.backbone.tower,
    )
    before = [fingerprint(network.state_dict()) for network in networks]
    training.run()
    assert [fingerprint(network.state_dict()) for network in networks] == before
    assert all(p.grad is None and not p.requires_grad for network in networks for p in network.parameters())


@pytest.mark.parametrize(("off", "still"), [("train_offsets", "offsets."), ("train_encoder", "encoder.")])
def test_what_does_not_train_keeps_its_first_weights(off: str, still: str, place: Path, tmp_path: Path) -> None:
    first = {
        name: value.clone()
        for name, value in Training(config_of(place, tmp_path)).encoder_and_offsets.state_dict().items()
    }
    AcceleratorState._reset_state(reset_partial_state=True)
    last = train(place, tmp_path, f"training.{off}=false", "training.steps=2")
    changed = {name for name in last if not torch.equal(first[name], last[name])}
    assert changed
    assert not any(name.startswith(still) for name in changed)


CHANGES = {
    "λ": "training.regularization=10",
    "the feature pass's gradient": "training.stop_feature_gradient=true",
    "templates": "domain.templates=style",
    "the scale": "domain.scale=0.5",
    "the offsets' rate": "training.offset_rate=0.1",
    "the first answer": "training.first_answer=0.1",
    "the seed": "training.seed=5",
    "direct offsets": "training.offset_form=direct",
    "clipping": "training.clip=1e-6",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_has_an_effect(name: str, place: Path, tmp_path: Path) -> None:
    plain = train(place, tmp_path / "plain", "training.steps=2")
    other = train(place, tmp_path / "other", "training.steps=2", CHANGES[name])
    assert not same(plain, other)


@pytest.mark.parametrize("form", ["direct", "hypernetwork"])
def test_other_forms_of_offsets_train_resume_and_are_described(form: str, place: Path, tmp_path: Path) -> None:
    more = (f"training.offset_form={form}", "training.micro_batch=1", "output.preview_every=4")
    first = Training(config_of(place, tmp_path / "whole", *more))
    assert first.encoder_and_offsets.offset_rms(torch.ones(1, 2, 64)) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    whole = train(place, tmp_path / "whole", *more)
    train(place, tmp_path / "parts", *more, "training.steps=2")
    assert same(whole, train(place, tmp_path / "parts", *more))
    assert losses(tmp_path / "whole", "weight offset rms")[-1] > 0
    domain = load_domain(tmp_path / "whole" / "face.safetensors")
    assert domain.info.offset_form == domain.offsets.form == form
    photos = torch.randn(2, 1, 2, 64, generator=torch.Generator().manual_seed(3))
    a, b = (domain.offsets.fixed(photo) for photo in photos)
    name, (rows, columns) = next(iter(domain.offsets.shapes.items()))
    differ = not torch.equal(a.apply(name, torch.ones(rows, columns)), b.apply(name, torch.ones(rows, columns)))
    assert differ == (form == "hypernetwork")


def test_a_hypernetwork_needs_a_pass_for_each_photo(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hypernetwork.*micro_batch = 4 puts several photos into one pass"):
        config_of(place, tmp_path, "training.offset_form=hypernetwork")


def test_the_average_is_what_the_domain_gets(place: Path, tmp_path: Path) -> None:
    last = train(place, tmp_path / "plain")
    train(place, tmp_path / "averaged", "training.ema=0.999")
    plain, averaged = (load_domain(tmp_path / out / "face.safetensors") for out in ("plain", "averaged"))
    name = "final.weight"
    assert torch.allclose(plain.encoder.state_dict()[name], last[f"encoder.{name}"].half().float())
    assert not torch.equal(plain.encoder.state_dict()[name], averaged.encoder.state_dict()[name])


def test_the_domain_file_describes_the_run(place: Path, tmp_path: Path) -> None:
    train(place, tmp_path)
    domain = load_domain(tmp_path / "face.safetensors")
    info = domain.info
    assert (info.word, info.base_family, info.prediction, info.step) == ("face", "sd1", "epsilon", 4)
    assert info.training["learning_rate"] == pytest.approx(4e-4)
    assert info.training["data"] == ["data"]
    assert info.training["use_mask"] is False
    assert not info.backbone.weights_inside and len(info.backbone.sha256) == 64
    assert domain.backbone_state is None


def test_tensorboard_gets_what_the_log_gets(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(place, tmp_path, "training.steps=2", "output.tensorboard=true")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(tmp_path), rel=1e-6)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(DataError, match="tensorboard is not installed"):
        train(place, tmp_path / "other", "training.steps=2", "output.tensorboard=true")


def test_previews_are_grids_of_photos_and_prompts(place: Path, tmp_path: Path) -> None:
    train(place, tmp_path, "training.steps=2", "output.preview_every=2", 'output.preview_prompts=["a {}", "one {}"]')
    grid = Image.open(tmp_path / "previews" / "step-00000002.png")
    assert grid.size == (3 * 64, 4 * 64)
    assert grid.crop((0, 0, 64, 64)).getpixel((5, 5))[2] == 77  # the test pictures' blue


def test_a_dry_run_does_three_steps_and_writes_nothing(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    with caplog.at_level(logging.INFO):
        assert main(["--config", "face", "--dry-run", *overrides(place, out), "data.cache_features=true"]) == 0
    assert not out.exists()
    assert "seconds per step" in caplog.text


def test_the_domain_of_the_last_checkpoint_can_be_exported(place: Path, tmp_path: Path) -> None:
    train(place, tmp_path, "training.steps=2")
    path = tmp_path / "face.safetensors"
    path.unlink()
    assert main(["--config", "face", "--export", *overrides(place, tmp_path)]) == 0
    assert load_domain(path).info.step == 2
