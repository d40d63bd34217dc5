"""The node "E4T Personalize" cancelled, broken or out of memory: nothing is harmed, and one sentence says what to do."""

from __future__ import annotations

import dataclasses
import logging

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from e4t_pack.nodes.host.learning import learn, progress
from e4t_pack.nodes.host.learning.result_store import STORE
from e4t_pack.nodes.host.networks.base_model import ComfyUNet
from personalized import draw
from world import LOOKING

from e4t_core.methods.e4t.subject import LEVELS


class Stop(BaseException):
    """Stands for ComfyUI's InterruptProcessingException, which is no Exception either."""


@pytest.mark.parametrize("phase", ["latent", "features", "models", "subject", "step 1", "step 2", "word"])
def test_cancel_at_every_phase_harms_nothing(run, untouched, monkeypatch, phase):
    seen = []
    original = progress.Progress.step

    def cancelled(*_):
        seen.append(1)
        if len(seen) == {"latent": 1, "features": 2, "models": 3}[phase]:
            raise Stop

    def step(self, report):
        if phase in (report.phase, f"step {report.step}" if report.phase == "tuning" else ""):
            comfy.model_management.interrupt_current_processing(True)
        original(self, report)

    if phase in ("latent", "features", "models"):
        monkeypatch.setattr(learn, "check_cancelled", cancelled)
    else:
        monkeypatch.setattr(progress.Progress, "step", step)
    with pytest.raises((Stop, comfy.model_management.InterruptProcessingException)):
        run(settings=dataclasses.replace(LOOKING, steps=2))
    monkeypatch.undo()
    assert len(STORE) == 0
    untouched()


def test_cancel_acts_within_one_micro_batch(run, monkeypatch):
    reports, original = [], progress.Progress.step

    def step(self, report):
        reports.append(report)
        comfy.model_management.interrupt_current_processing(True)
        original(self, report)

    monkeypatch.setattr(progress.Progress, "step", step)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(settings=dataclasses.replace(LOOKING, batch=4, micro_batch=1))
    assert len(reports) == 1 and reports[0].micro == 1


def test_cancel_during_sampling_harms_nothing_and_the_next_run_is_right(run, untouched):
    model, clip, _, _ = run()
    expected = draw(model, clip, steps=3)
    seen = []

    def stop(executor, *arguments):
        seen.append(1)
        if len(seen) == 2:
            raise Stop
        return executor(*arguments)

    stopping = model.clone()
    stopping.add_wrapper(WrappersMP.CALC_COND_BATCH, stop)
    with pytest.raises(Stop):
        draw(stopping, clip, steps=3)
    untouched()
    assert torch.equal(draw(model, clip, steps=3), expected)


@pytest.mark.parametrize(("calls", "phase"), [(0, "start"), (2, "subject"), (4, "subject"), (5, "tuning")])
def test_an_exception_in_a_step_harms_nothing(run, untouched, monkeypatch, calls, phase):
    """Finding the subject takes four passes of ``denoise``."""
    seen, reports, original, step = [], ["start"], ComfyUNet.denoise, progress.Progress.step

    def broken(self, z, t, context):
        if len(seen) == calls:
            raise RuntimeError("broken")
        seen.append(1)
        return original(self, z, t, context)

    monkeypatch.setattr(ComfyUNet, "denoise", broken)
    monkeypatch.setattr(progress.Progress, "step", lambda self, r: (reports.append(r.phase), step(self, r)))
    with pytest.raises(RuntimeError, match="broken"):
        run(settings=dataclasses.replace(LOOKING, steps=2))
    assert reports[-1] == phase
    monkeypatch.undo()
    assert len(STORE) == 0
    untouched()


def out_of_memory_above(monkeypatch, limit):
    """Simulates a GPU on which more than ``limit`` latents at once do not fit."""
    original, tried = ComfyUNet.denoise, []

    def denoise(self, z, t, context):
        tried.append(z.shape[0])
        if z.shape[0] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return original(self, z, t, context)

    monkeypatch.setattr(ComfyUNet, "denoise", denoise)
    return tried


@pytest.mark.parametrize(("limit", "tried_sizes"), [(2, [4, 2]), (1, [4, 2, 1])])
def test_out_of_memory_goes_on_to_smaller_micro_batches(run, untouched, monkeypatch, caplog, limit, tried_sizes):
    tried = out_of_memory_above(monkeypatch, limit)
    with caplog.at_level(logging.WARNING):
        _, _, held, _ = run(settings=dataclasses.replace(LOOKING, batch=4, micro_batch=4))
    assert tried[0] == LEVELS and tried[1] == 1, "the subject is looked for one by one"
    assert tried[-1] == limit and 4 in tried and held.settings.batch == 4
    again = [line.split("trying again")[1] for line in caplog.text.splitlines() if "trying again" in line]
    found = [any(f"micro-batch {size}" in line for line in again) for size in (2, 1)]
    assert found == [2 in tried_sizes, 1 in tried_sizes]
    monkeypatch.undo()
    untouched()


def test_out_of_memory_with_the_smallest_plan_keeps_its_type_and_says_what_to_lower(run, untouched, monkeypatch):
    out_of_memory_above(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError) as error:
        run()
    assert comfy.model_management.is_oom(error.value)
    assert "or switch train_unet off in E4T Settings" in "".join(error.value.__notes__)
    monkeypatch.undo()
    assert len(STORE) == 0
    untouched()
