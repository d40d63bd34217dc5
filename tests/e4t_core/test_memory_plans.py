"""Memory plans change where and how a run computes, not what it learns."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping

import pytest
import torch
from tiny import TinyText, TinyUNet, tiny_domain, tiny_photos
from torch import Tensor
from tuned import SMOOTH, close, identical, tensors_of, tune

from e4t_core import training
from e4t_core.concept import Concept
from e4t_core.loop_settings import LoopSettings
from e4t_core.memory_need import LEAST, Trained, Work, candidates, need, sizes
from e4t_core.memory_plan import BALANCED, FAST, LEAN, LEANEST, PLANS, MemoryPlan
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.photos import TuningError
from e4t_core.trained_weight import TrainedWeight
from e4t_core.working_weights import WorkingWeights

SETTINGS = dataclasses.replace(SMOOTH, batch=8, micro_batch=0)


class PlannedUNet(TinyUNet):
    """Computes in a number type of its own, and counts contexts with checkpointing."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.checkpointed: list[bool] = []

    @contextlib.contextmanager
    def using(self, weights: Mapping[str, Tensor], checkpointing: bool = False) -> Iterator[None]:
        assert all(weight.dtype == self.dtype for weight in weights.values())
        self.checkpointed.append(checkpointing)
        own = {name: p.to(self.dtype) for name, p in self.network.named_parameters()}
        with super().using({**own, **weights}):
            yield

    def denoise(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype == torch.bfloat16):
            return super().denoise(z, t, context).float()

    def features(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype == torch.bfloat16):
            return super().features(z, t, context).float()


def learned(plan: MemoryPlan, settings: TuningSettings = SETTINGS, unet: TinyUNet | None = None) -> Concept:
    unet = unet or PlannedUNet()
    return tune(unet, TinyText(), tiny_domain(unet), tiny_photos(), settings, 1, plan=plan)


@pytest.mark.parametrize("micro_batch", [8, 3])
def test_where_the_state_lives_changes_no_bit(micro_batch: int) -> None:
    fast, lean = (learned(dataclasses.replace(plan, micro_batch=micro_batch)) for plan in (FAST, LEAN))
    assert identical(fast, lean)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_every_plan_gives_the_same_concept_up_to_rounding(plan: MemoryPlan, micro_batch: int) -> None:
    # Moments that rest in bfloat16 round each step by up to 1 / 256 of it.
    tolerance = 4e-3 * SETTINGS.learning_rate * SETTINGS.steps if plan.half_moments else 1e-6
    assert close(learned(FAST), learned(dataclasses.replace(plan, micro_batch=micro_batch)), tolerance)


@pytest.mark.parametrize("plan", [FAST, BALANCED])
def test_the_plan_says_whether_blocks_are_computed_again(plan: MemoryPlan) -> None:
    unet = PlannedUNet()
    learned(plan, unet=unet)
    assert set(unet.checkpointed) == {plan.checkpointing}


def test_masters_stay_float32_where_the_unet_computes_in_bfloat16() -> None:
    settings = dataclasses.replace(SETTINGS, steps=4, learning_rate=1e-5, eps=1e-8)
    exact, rounded = learned(FAST, settings), learned(FAST, settings, PlannedUNet(torch.bfloat16))
    one, other = tensors_of(exact), tensors_of(rounded)
    moved = [name for name in one if name.startswith("difference.")]
    assert len(moved) > 5 and moved == [name for name in other if name.startswith("difference.")]
    for name in moved:
        # Each step is far below what bfloat16 can tell apart in most weights; four of them add up all the same.
        assert torch.cosine_similarity(one[name].flatten(), other[name].flatten(), dim=0) > 0.9, name


def test_one_backward_pass_leaves_no_gradients_behind_and_several_leave_one_buffer() -> None:
    for parts, waiting in ((1, 0), (2, 3)):
        start = {str(number): torch.randn(4, 4) for number in range(3)}
        weights = {name: TrainedWeight.plain(value, torch.device("cpu")) for name, value in start.items()}
        working = WorkingWeights(weights, LoopSettings(), FAST, torch.device("cpu"), torch.bfloat16)
        if parts == 1:
            working.step_in_backward()
        for _ in range(parts):
            sum(tensor.float().square().sum() for tensor in working.tensors.values()).backward()
        assert len(working.gradients()) == waiting
        working.step()
        assert working.gradients() == []
        for name, tensor in working.tensors.items():
            master = weights[name].parameters[0]
            assert not torch.equal(master, start[name]) and torch.equal(tensor, master.bfloat16())
            assert master.grad is None


def test_a_weight_that_trains_as_it_is_takes_no_memory_twice() -> None:
    weight = TrainedWeight.plain(torch.ones(4), torch.device("cpu"))
    working = WorkingWeights({"w": weight}, LoopSettings(), FAST, torch.device("cpu"), torch.float32)
    assert working.tensors["w"].data_ptr() == weight.parameters[0].data_ptr()


class Spoiled(PlannedUNet):
    """The gradient of one weight is NaN in one backward pass; the loss is not."""

    def __init__(self, when: int) -> None:
        super().__init__()
        self.when, self.passes = when, 0

    @contextlib.contextmanager
    def using(self, weights: Mapping[str, Tensor], checkpointing: bool = False) -> Iterator[None]:
        weights = dict(weights)
        weight = weights["conv_out.weight"]
        if weight.requires_grad and torch.is_grad_enabled():
            self.passes += 1
            spoiled = weight.view_as(weight)
            if self.passes == self.when:
                spoiled.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
            weights["conv_out.weight"] = spoiled
        with super().using(weights, checkpointing):
            yield


@pytest.mark.parametrize("micro_batch", [0, 4])
def test_a_gradient_that_is_not_finite_ends_the_run_with_the_step_before(micro_batch: int) -> None:
    settings, plan = dataclasses.replace(SETTINGS, steps=3), MemoryPlan(micro_batch=micro_batch)
    passes = 1 if micro_batch == 0 else 2
    concept = learned(plan, settings, Spoiled(2 * passes))
    before = learned(plan, dataclasses.replace(settings, steps=1))
    assert len(concept.losses) == 1 and "in step 2 of 3, so the result of step 1 is kept" in concept.notes[-1]
    one, other = tensors_of(concept), tensors_of(before)
    # With one pass, the other weights have stepped by then, and step back up to rounding.
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    with pytest.raises(TuningError, match="NaN or infinite in step 1 of 3: lower the learning rate"):
        learned(plan, settings, Spoiled(1))


class Half(PlannedUNet):
    """Computes in float16, as a card without bfloat16 does."""

    def __init__(self) -> None:
        super().__init__(torch.float16)

    def denoise(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return super().denoise(z.half(), t, context.half())

    def features(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return super().features(z.half(), t, context.half())


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> Half:
    cosine = torch.cos
    # The tiny network makes its timestep embedding in float32.
    monkeypatch.setattr(torch, "cos", lambda angle: cosine(angle).half())
    return Half()


@pytest.mark.parametrize("micro_batch", [0, 4])
def test_float16_learns_what_float32_learns(half: Half, micro_batch: int) -> None:
    concept = learned(MemoryPlan(micro_batch=micro_batch), unet=half)
    assert concept.losses[-1] == pytest.approx(concept.losses[0], rel=0.5)
    assert not concept.notes


def test_gradients_that_overflow_float16_are_scaled_down_repeated_and_told(
    half: Half, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reference = learned(FAST, unet=half)
    monkeypatch.setattr(training, "LOSS_SCALE", 2.0**24)
    seen: list[int] = []
    with caplog.at_level("INFO"):
        unet, reports = Half(), []
        concept = tune(
            unet, TinyText(), tiny_domain(unet), tiny_photos(), SETTINGS, 1, on_step=reports.append, plan=FAST
        )
    assert "overflowed float16 in step 1 of 2" in caplog.text
    assert "made again 3 times" in concept.notes[-1]
    assert close(reference, concept, 2e-3) and len(concept.losses) == SETTINGS.steps
    seen = [report.done for report in reports]
    assert seen == sorted(set(seen)) and seen[-1] == reports[-1].total


def test_gradients_that_overflow_however_little_is_scaled_end_in_one_sentence(
    half: Half, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LOSS_SCALE", 2.0**80)
    with pytest.raises(TuningError, match="5 times in a row in step 1 of 2.*start ComfyUI with --force-fp32"):
        learned(FAST, unet=half)


def test_candidates_go_from_the_fastest_to_the_smallest() -> None:
    plans = list(candidates("auto", 0, 16))
    assert plans[0] == dataclasses.replace(FAST, micro_batch=16)
    assert plans[-1] == dataclasses.replace(LEANEST, micro_batch=1)
    assert list(dict.fromkeys(plan.name for plan in plans)) == list(PLANS)
    for plan, group in itertools.groupby(plans, key=lambda plan: plan.name):
        assert [found.micro_batch for found in group][-1] == LEAST[PLANS[plan]]


def test_a_plan_that_is_asked_for_comes_first_with_every_micro_batch() -> None:
    plans = list(candidates("lean", 4, 16))
    assert [(plan.name, plan.micro_batch) for plan in plans][:3] == [("lean", 4), ("lean", 2), ("lean", 1)]
    assert {plan.name for plan in plans[3:]} == {"leanest"}


def test_sizes_halve_down_to_one() -> None:
    assert list(sizes(16, 16)) == [16, 8, 4, 2, 1] and list(sizes(40, 5)) == [5, 3, 2, 1] and list(sizes(1, 9)) == [1]


def test_each_plan_needs_less_of_the_card_than_the_one_before() -> None:
    work = Work(Trained(True, 143_226_592, 35_600_000), 859_520_964, 320, 64 * 64, 16, 2)
    for one, other in itertools.pairwise(PLANS.values()):
        before, after = (need(dataclasses.replace(plan, micro_batch=4), work) for plan in (one, other))
        assert after.card < before.card or (after.card == before.card and after.ram < before.ram)
