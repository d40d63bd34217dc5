"""Which memory plan is chosen on which card, and what happens where it does not fit after all."""

from __future__ import annotations

import dataclasses

import comfy.model_management
import pytest
import torch
from e4t_pack.e4t_core.memory_need import Trained, Work, need
from e4t_pack.e4t_core.memory_plan import FAST, LEAN, LEANEST
from e4t_pack.e4t_core.methods.e4t.settings import FACE
from e4t_pack.e4t_core.methods.textual_inversion import TextualInversionSettings
from e4t_pack.nodes.host.learning import memory, progress
from e4t_pack.nodes.host.learning.memory import Free, TooLittleMemoryError, plans_that_fit, run_in_memory
from e4t_pack.nodes.host.learning.result_store import STORE
from world import QUICK

from benchmarks.memory_trace import MemoryTrace

SD15 = Work(Trained(True, 143_226_592, 35_600_000), 859_520_964, 320, 64 * 64, 16, 2)
WORD_ONLY = dataclasses.replace(SD15, trained=Trained(), batch=4)
# A card's driver, ComfyUI itself and a screen take about this much.
TAKEN = 0.7e9


def card(gigabytes, ram=32):
    return Free(gigabytes * 1e9 - TAKEN, gigabytes * 1e9, ram * 1e9)


@pytest.mark.parametrize(
    ("gigabytes", "name"), [(80, "fast"), (24, "fast"), (16, "balanced"), (12, "lean"), (8, "lean"), (6, "leanest")]
)
def test_each_card_gets_the_fastest_plan_that_fits(gigabytes, name):
    plans = plans_that_fit(FACE, SD15, card(gigabytes))
    assert plans[0].name == name
    wanted = need(plans[0], SD15)
    assert card(gigabytes).holds(wanted) and wanted.card > 0.4 * min(gigabytes, 40) * 1e9
    assert [plan.name for plan in plans][-1] == "leanest" and plans[-1].micro_batch == 1


def test_more_room_is_used_for_larger_micro_batches():
    chosen = [plans_that_fit(FACE, SD15, card(gigabytes))[0].micro_batch for gigabytes in (24, 32, 48)]
    assert chosen == sorted(chosen) and chosen[0] < chosen[-1] == 16


def test_little_ram_leaves_the_plan_that_holds_less_in_it():
    assert plans_that_fit(FACE, SD15, card(8, ram=10))[0].name == LEANEST.name
    with pytest.raises(TooLittleMemoryError, match="of 5.0 GB of RAM"):
        plans_that_fit(FACE, SD15, card(8, ram=5))


@pytest.mark.parametrize("gigabytes", [4, 0.7])
def test_below_the_smallest_plan_one_sentence_says_what_is_needed_and_what_to_do(gigabytes):
    with pytest.raises(TooLittleMemoryError) as error:
        plans_that_fit(FACE, SD15, card(gigabytes))
    said = str(error.value)
    assert f"of {gigabytes - 0.7:.1f} GB" in said and f"0.7 of its {gigabytes:.1f} GB are taken" in said
    assert "the smallest memory plan (leanest plan: micro-batch 1" in said and "close other programs" in said


def test_a_plan_that_is_asked_for_and_cannot_fit_is_refused_with_its_need():
    with pytest.raises(TooLittleMemoryError, match="'fast' .*micro-batch 1.* of 7.3 GB .*choose a smaller one or auto"):
        plans_that_fit(dataclasses.replace(FACE, memory="fast"), SD15, card(8))


def test_a_plan_that_is_asked_for_is_taken_where_a_faster_one_would_fit():
    plans = plans_that_fit(dataclasses.replace(FACE, memory="lean"), SD15, card(80))
    assert plans[0] == dataclasses.replace(LEAN, micro_batch=16)
    asked = plans_that_fit(dataclasses.replace(FACE, memory="fast", micro_batch=2), SD15, card(80))
    assert asked[0] == dataclasses.replace(FAST, micro_batch=2)


def test_a_method_that_trains_no_weights_needs_little():
    settings = TextualInversionSettings()
    assert plans_that_fit(settings, WORD_ONLY, card(12))[0] == dataclasses.replace(FAST, micro_batch=4)
    assert plans_that_fit(settings, WORD_ONLY, card(5))[0].checkpointing


def test_where_the_device_computes_in_ram_both_needs_are_one():
    shared, work = Free(16e9, 20e9, None), dataclasses.replace(SD15, itemsize=4, in_ram=True)
    plan = plans_that_fit(FACE, work, shared)[0]
    wanted = need(plan, work)
    assert wanted.ram == 0 and 10e9 < wanted.card < 16e9 and "of 16.0 GB" in shared.told(wanted)


@pytest.mark.parametrize("device", ["cuda", "cpu", "mps"])
def test_what_is_free_is_asked_of_comfyui(monkeypatch, device):
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda asked: 6e9 if asked.type == "cuda" else 20e9)
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda asked: 8e9)
    monkeypatch.setattr(comfy.model_management, "extra_reserved_memory", lambda: 1e9)
    assert Free.now(torch.device(device)) == (Free(5e9, 8e9, 20e9) if device == "cuda" else Free(20e9, 8e9, None))


def test_out_of_memory_goes_through_all_plans_before_anyone_sees_an_error(caplog):
    tried, plans = [], plans_that_fit(FACE, SD15, card(8))

    def run(plan):
        tried.append(plan)
        raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    with pytest.raises(torch.OutOfMemoryError) as error:
        run_in_memory(plans, run, lambda plan: f"{plan.told()}, 5.1 of 7.3 GB")
    assert tried == plans and comfy.model_management.is_oom(error.value)
    assert "leanest plan: micro-batch 1" in error.value.__notes__[0] and "5.1 of 7.3 GB" in error.value.__notes__[0]
    assert caplog.text.count("trying again") == len(plans) - 1


def test_other_errors_are_not_tried_again():
    tried = []

    def run(plan):
        tried.append(plan)
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        run_in_memory([FAST, LEAN], run)
    assert tried == [FAST]


def test_nothing_is_learned_where_no_plan_fits(run, monkeypatch, untouched):
    monkeypatch.setattr(memory.Free, "now", classmethod(lambda cls, device: Free(1e5, 8e9, None)))
    with pytest.raises(TooLittleMemoryError, match="0.0 GB"):
        run()
    monkeypatch.undo()
    untouched()


def test_the_node_says_which_plan_is_used(run, monkeypatch):
    shown = []
    monkeypatch.setattr(progress, "show_text", shown.append)
    run()
    assert "Memory: fast plan: micro-batch 2, " in shown[-1] and shown[-1].rstrip().endswith(" GB.")


def test_a_card_that_refuses_is_given_smaller_plans_until_one_fits(run, monkeypatch, caplog):
    """Every tensor is counted, and what does not fit is refused, as by a card of that size."""
    settings = dataclasses.replace(QUICK, batch=16, micro_batch=0, train_unet=True)

    def learned(limit, **changes):
        STORE.clear()
        with MemoryTrace({"cpu": limit}) as trace:
            held = run(settings=dataclasses.replace(settings, **changes))[2]
        return held, trace.peak("cpu").size

    roomy, most = learned(10**12)
    _, least = learned(10**12, memory="leanest", micro_batch=1)
    assert "trying again" not in caplog.text and least < 0.95 * most
    # It is reached before the backward pass begins: of one that ends halfway PyTorch's queue for the CPU, other than those
    # for cards, keeps what was to come.
    limit = least + (most - least) // 4
    held, peak = learned(limit)
    # The block that was refused is counted, too.
    assert peak <= 1.05 * limit and "out of memory with the fast plan: micro-batch 16" in caplog.text
    assert held.losses == pytest.approx(roomy.losses, rel=1e-3)
    with pytest.raises(torch.OutOfMemoryError) as error:
        learned(int(0.8 * least))
    assert "also with the leanest plan: micro-batch 1" in error.value.__notes__[0]
