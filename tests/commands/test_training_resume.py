"""What a run meets on a cluster when it goes on: other disks, other files, a crash's leavings, a launcher's settings."""

from __future__ import annotations

import json
import logging
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import make_folder
from safetensors.torch import load_file, save_file
from small_base import config_of, make_place, overrides
from training_runs import losses, same, train

from commands.pretrain import __main__ as command
from commands.pretrain.data.pictures import DataError
from commands.pretrain.run.checkpoints import CheckpointError
from commands.pretrain.run.errors import TrainingError
from commands.pretrain.run.feature_cache import FeatureCache
from commands.pretrain.run.journal import Journal
from commands.pretrain.run.processes import check_alike
from commands.pretrain.run.training import Training


def test_processes_that_would_start_apart_stop() -> None:
    check_alike(["step 3, data x"] * 3)
    with pytest.raises(TrainingError, match="Process 2 would start .*process 0 .step 0, data x; step 3, data x"):
        check_alike(["step 3, data x", "step 3, data x", "step 0, data x"])


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"])
def test_another_base_at_the_same_place_is_noticed(part: str, tmp_path: Path) -> None:
    place = make_place(tmp_path / "place")
    train(place, tmp_path / "out", "training.steps=2")
    file = place / "base" / f"{part}.safetensors"
    tensors = load_file(file)
    tensors[min(tensors)] += 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(TrainingError, match="the base has other weights than before"):
        Training(config_of(place, tmp_path / "out"))


def test_another_backbone_at_the_same_place_is_noticed(tmp_path: Path) -> None:
    place = make_place(tmp_path / "place")
    train(place, tmp_path / "out", "training.steps=2")
    tensors = load_file(place / "backbone.safetensors")
    save_file({name: value * 1.01 for name, value in tensors.items()}, place / "backbone.safetensors")
    with pytest.raises(TrainingError, match="the backbone has other weights than before"):
        Training(config_of(place, tmp_path / "out"))


def test_weights_of_other_shapes_are_refused_even_if_changes_are_accepted(place: Path, tmp_path: Path) -> None:
    train(place, tmp_path, "training.steps=2", "domain.v_size=1")
    with pytest.raises(CheckpointError, match="has the shape .* and these settings want"):
        Training(config_of(place, tmp_path, "domain.v_size=3"), accept_changes=True)


def test_a_launchers_accumulation_changes_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(place, tmp_path / "plain", "training.steps=2", "training.clip=1.0")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    launched = train(place, tmp_path / "launched", "training.steps=2", "training.clip=1.0")
    assert same(plain, launched)
    assert losses(tmp_path / "plain", "gradient length") == losses(tmp_path / "launched", "gradient length")


def test_what_a_killed_write_left_is_removed(place: Path, tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".step-00000001.safetensors.999.tmp"
    left.parent.mkdir()
    left.write_bytes(b"half")
    train(place, tmp_path, "training.steps=2")
    assert not left.exists()


def test_tensorboard_keeps_every_step_over_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done in (0, 2):
        journal = Journal(tmp_path, 4, done, tensorboard=True)
        for step in (done + 1, done + 2):
            journal.write(step, {"loss": float(step)})
        journal.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4] == losses(tmp_path, "step")


def test_a_damaged_line_of_the_log_goes_and_small_numbers_stay(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n' + bytes(40) + b'\n{"no": 2}\n')
    journal = Journal(tmp_path, 4, 2, tensorboard=False)
    journal.write(3, {"learning rate": 1.6e-9})
    journal.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1}, {"step": 3, "learning rate": 1.6e-9}]


def test_a_full_disk_ends_the_cache_in_a_sentence(place: Path, tmp_path: Path) -> None:
    training = Training(config_of(place, tmp_path, "data.cache_features=true"))
    cache = FeatureCache(tmp_path / "features", training.data.rows, "key")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
    try:
        with pytest.raises(DataError, match="could not be written .*: make room"):
            cache.fill(training.data, training.extractor, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    cache.fill(training.data, training.extractor, 4)
    cache.check_whole()


def test_corrupt_pictures_stop_a_run_while_the_cache_is_made(place: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "data", 40, corrupt=range(20))
    source = f'data.sources=[{{kind = "folder", path = "{(tmp_path / "data").as_posix()}"}}]'
    with pytest.raises(DataError, match="of 40 samples are corrupt"):
        train(place, tmp_path / "out", source, "data.cache_features=true")
    (folder,) = (tmp_path / "out" / "features").iterdir()
    assert (folder / "state.u8").read_bytes().count(1) < 20, "stopped before all were computed"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "lower training.micro_batch"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "lower data.workers"),
    ],
)
def test_a_machine_that_is_too_small_is_told_what_to_lower(
    error: RuntimeError,
    told: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr(Training, "run", fail)
    assert command.main(["--config", "face", *overrides(place, tmp_path)]) == 1
    assert told in caplog.text
    monkeypatch.setattr(Training, "run", lambda _: (_ for _ in ()).throw(RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        command.main(["--config", "face", *overrides(place, tmp_path)])


def test_an_export_needs_no_room_and_no_dry_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train(place, tmp_path, "training.steps=2")
    monkeypatch.setattr("shutil.disk_usage", lambda _: pytest.fail("an export asks for the room of checkpoints"))
    assert command.main(["--config", "face", "--export", *overrides(place, tmp_path)]) == 0
    with pytest.raises(SystemExit):
        command.main(["--config", "face", "--export", "--dry-run", *overrides(place, tmp_path)])


def test_the_length_of_the_word_is_told_beside_its_scale(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        Training(config_of(place, tmp_path))
    assert "of that (the paper's: about 0.26)" in caplog.text
