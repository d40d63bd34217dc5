"""Pre-training that is stopped, killed, or given what does not suit: nothing is lost, and one sentence says why."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from layouts import make_folder
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_base import config_of, overrides
from training_runs import losses, start, train, wait_for_steps

from commands.interruptible import STOPPED
from commands.pretrain.__main__ import main
from commands.pretrain.data.pictures import DataError
from commands.pretrain.run.checkpoints import CheckpointError
from commands.pretrain.run.errors import Stopped, TrainingError
from commands.pretrain.run.feature_cache import FeatureCache
from commands.pretrain.run.training import Training
from e4t_core.fingerprint import fingerprint

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_a_killed_process_ends_the_others_and_the_run_goes_on_from_its_checkpoint(place: Path, tmp_path: Path) -> None:
    process = start(place, tmp_path, "training.steps=100000", processes=2)
    wait_for_steps(tmp_path, 3, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("this system does not list a process's children")
    workers = [int(child) for child in children.read_text().split()]
    os.kill(workers[-1], signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    found = len(list((tmp_path / "checkpoints").glob("step-*.safetensors")))
    assert found >= 1
    assert not list((tmp_path / "checkpoints").glob(".*"))
    step = Training(config_of(place, tmp_path, "training.steps=100000")).step
    assert step >= 2 and step % 2 == 0
    more = f"training.steps={step + 2}"
    train(place, tmp_path / "whole", more)
    train(place, tmp_path, more)
    assert losses(tmp_path) == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_ctrl_c_saves_and_the_same_command_goes_on(place: Path, tmp_path: Path) -> None:
    every = "output.checkpoint_every=1000"
    process = start(place, tmp_path / "cut", "training.steps=100000", every)
    wait_for_steps(tmp_path / "cut", 2, process)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == STOPPED, text
    done = len(losses(tmp_path / "cut"))
    assert f"Stopped after step {done} of 100000" in text
    steps = f"training.steps={done + 1}"
    train(place, tmp_path / "whole", steps, every)
    train(place, tmp_path / "cut", steps, every)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_too(number: signal.Signals, place: Path, tmp_path: Path) -> None:
    """A terminal's Ctrl-C and a cluster's SIGTERM reach the workers that read pictures as well."""
    process = start(place, tmp_path, "training.steps=100000", "data.workers=2")
    wait_for_steps(tmp_path, 2, process)
    os.killpg(process.pid, number)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == STOPPED, text
    assert "Traceback" not in text
    assert f"step-{len(losses(tmp_path)):08d}.safetensors" in {p.name for p in (tmp_path / "checkpoints").iterdir()}


def test_a_stop_in_process_is_told(place: Path, tmp_path: Path) -> None:
    training = Training(config_of(place, tmp_path))
    training._stop()
    with pytest.raises(Stopped, match="Stopped after step 1 of 4"):
        training.run()
    assert training.checkpoints.steps() == [1]


def test_a_full_disk_leaves_the_checkpoint_before_intact(place: Path, tmp_path: Path) -> None:
    train(place, tmp_path, "training.steps=2")
    before = fingerprint(load_file(tmp_path / "checkpoints" / "step-00000002.safetensors"))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    training = Training(config_of(place, tmp_path))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        with pytest.raises(CheckpointError, match="step 4 could not be written .* the one of step 2 is intact"):
            training.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert training.checkpoints.steps() == [2]
    assert fingerprint(load_file(tmp_path / "checkpoints" / "step-00000002.safetensors")) == before
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(place: Path, tmp_path: Path) -> None:
    train(place, tmp_path, "training.steps=2")
    training = Training(config_of(place, tmp_path, "training.steps=8"))
    with torch.no_grad():
        training.encoder_and_offsets.encoder.final.weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match=r"In step 3 of 8 the term 'diffusion' .* checkpoint is of step 2"):
        training.run()
    assert training.checkpoints.steps() == [2]


def test_weights_that_are_no_numbers_are_never_saved(place: Path, tmp_path: Path) -> None:
    training = Training(config_of(place, tmp_path))
    with torch.no_grad():
        next(iter(training.encoder_and_offsets.offsets.parameters())).fill_(float("nan"))
    with pytest.raises(TrainingError, match="became NaN or infinite"):
        training.save()
    assert training.checkpoints.steps() == []


@pytest.mark.parametrize("cache", ["true", "false"])
def test_few_corrupt_pictures_are_counted_and_many_stop_the_run(cache: str, place: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "few", 40, corrupt=[3])
    more = (f"data.cache_features={cache}", "training.steps=12")
    source = f'data.sources=[{{kind = "folder", path = "{(tmp_path / "few").as_posix()}"}}]'
    train(place, tmp_path / "out", *more, source, "data.most_corrupt=0.05")
    assert losses(tmp_path / "out", "corrupt samples")[-1] == 1
    with pytest.raises(DataError, match="1 of 40 samples are corrupt"):
        train(place, tmp_path / "other", *more, source)


def test_other_pictures_at_the_same_place_are_noticed(place: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "data", 40)
    source = f'data.sources=[{{kind = "folder", path = "{(tmp_path / "data").as_posix()}"}}]'
    train(place, tmp_path / "out", source, "data.cache_features=true", "training.steps=2")
    for path in (tmp_path / "data").rglob("*.png"):
        Image.new("RGB", (40, 40), "red").save(path)
    with pytest.raises(TrainingError, match="other settings or data .*the data was 40 pictures, .* and is 40 pictures"):
        Training(config_of(place, tmp_path / "out", source, "data.cache_features=true"))
    AcceleratorState._reset_state(reset_partial_state=True)
    run = Training(config_of(place, tmp_path / "out", source, "data.cache_features=true"), accept_changes=True)
    run.run()
    assert len(list((tmp_path / "out" / "features").iterdir())) == 2


def test_a_cache_that_other_nodes_do_not_share_is_named(place: Path, tmp_path: Path) -> None:
    training = Training(config_of(place, tmp_path, "data.cache_features=true"))
    cache = FeatureCache(tmp_path / "features", training.data.rows, "key")
    cache.fill(training.data, training.extractor, 4, process=1, processes=2)
    with pytest.raises(DataError, match="lacks 20 of 40 rows, .* on a disk that all nodes share"):
        cache.check_whole()
    cache.fill(training.data, training.extractor, 4, process=0, processes=2)
    cache.check_whole()


def test_a_changed_setting_is_named_and_refused_until_it_is_accepted(place: Path, tmp_path: Path) -> None:
    train(place, tmp_path, "training.steps=2")
    config = config_of(place, tmp_path, "training.regularization=0.5", "training.micro_batch=2")
    with pytest.raises(TrainingError, match=r"other settings or data \(training.regularization was 0.01 and is 0.5\)"):
        Training(config)
    assert Training(config, accept_changes=True).step == 2
    path = tmp_path / "checkpoints" / "step-00000002.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    metadata["record"] = metadata["record"].replace('"offset_form": "network", ', "")
    save_file(tensors, path, metadata)
    assert Training(config_of(place, tmp_path)).step == 2  # of before there was that setting
    with pytest.raises(TrainingError, match="beyond training.steps = 1"):
        Training(config_of(place, tmp_path, "training.steps=1"))


def test_a_damaged_checkpoint_is_named(place: Path, tmp_path: Path) -> None:
    train(place, tmp_path, "training.steps=2")
    path = tmp_path / "checkpoints" / "step-00000002.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="could not be read: delete it .* is truncated"):
        Training(config_of(place, tmp_path))


def test_a_fault_is_one_sentence_and_an_exit_status(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["--config", "face", *overrides(place, tmp_path), "domain.word=photographer's"]) == 1
    assert caplog.records[-1].getMessage().startswith("wrong: ")
    assert "Traceback" not in caplog.text
