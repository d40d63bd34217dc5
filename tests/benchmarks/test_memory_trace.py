"""Memory as the tracker sees it: on real tensors, on fake ones, and beside what PyTorch's profiler sees."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.cost import allocated
from benchmarks.memory_trace import MIDDLE, STEP, Block, MemoryTrace, Segments

KB = 1024
CARD, RAM = "cpu", "meta"


def train() -> None:
    """Two steps of a small network."""
    network = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256))
    optimizer = torch.optim.AdamW(network.parameters())
    for _ in range(2):
        network(torch.randn(512, 256)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_what_lives_is_counted_once_and_what_dies_no_more() -> None:
    before = torch.zeros(KB)
    with MemoryTrace() as trace:
        first = torch.zeros(KB)
        view, outside = first[1:].view(-1, 1), before[1:]
        assert trace.now[CARD] == 4 * KB, "views are no memory, and what was there before is none of this"
        del first
        assert trace.now[CARD] == 4 * KB, "a view holds it"
        del view
        second = torch.ones(2 * KB)
    assert trace.now[CARD] == 8 * KB
    assert trace.peak(CARD).size == 8 * KB
    del second, outside
    assert trace.now[CARD] == 0


def test_sizes_are_rounded_up_as_on_a_card() -> None:
    with MemoryTrace() as trace:
        held = [torch.zeros(1), torch.zeros(129)]
    assert trace.now[CARD] == 512 + 1024
    del held


def test_a_storage_that_is_set_is_followed() -> None:
    with MemoryTrace() as trace:
        held = torch.empty(0).set_(torch.zeros(KB).untyped_storage().clone(), 0, (KB,), (1,))
    assert trace.now[CARD] == 4 * KB
    del held


def test_fake_tensors_take_what_real_ones_take_and_pytorchs_profiler_agrees() -> None:
    gc.collect()
    with MemoryTrace() as real:
        train()
    with FakeTensorMode(), MemoryTrace() as fake:
        train()
    peak = fake.peak(CARD).size
    assert real.peak(CARD).size == pytest.approx(peak, rel=0.02)
    assert allocated(train) == pytest.approx(peak, rel=0.1)


def test_the_peak_says_what_was_there() -> None:
    with FakeTensorMode(), MemoryTrace() as trace:
        train()

    def kind(block: Block) -> str:
        if block.backward:
            return "gradient" if block.outlived else "backward"
        return "moment" if "_init_group" in block.inner else block.inner.rpartition(":")[2]

    found = trace.peak(CARD).by(kind)
    weights = 4 * (2 * 256 * 1024 + 1024 + 256)
    assert found["Linear.__init__"] == weights
    assert found["moment"] >= 2 * weights
    assert found["backward"] or found["gradient"]
    assert any("test_memory_trace.py:train" in block.place for block in trace.peak(CARD).blocks)


def test_a_gradient_is_what_outlives_its_backward_pass() -> None:
    with MemoryTrace() as trace:
        weight = torch.ones(KB, KB, requires_grad=True)
        (weight.sin().cos() * 2).sum().backward()
        torch.zeros(1)
        made = {block for block in trace.blocks if block.backward}
        assert [block.size for block in made if block.outlived] == [4 * KB * KB]
        assert len(made) > 2
    trace.label([weight], "mine")
    assert next(block for block in trace.blocks if block.label == "mine").size == 4 * KB * KB


def test_each_device_has_its_ledger_and_copies_between_them_are_counted() -> None:
    with FakeTensorMode(), MemoryTrace() as trace:
        master = torch.empty(KB, device=RAM)
        leaf = master.to(CARD, torch.bfloat16)
        assert (trace.now[RAM], trace.now[CARD]) == (4 * KB, 2 * KB)
        assert trace.copied == {(RAM, CARD): 2 * KB}, "converted where it comes from, then copied"
        assert trace.peak(RAM).size == (4 + 2) * KB
        master.copy_(leaf)
        assert trace.copied[CARD, RAM] == 4 * KB
        leaf.to(CARD, torch.float32), torch.zeros(KB)
    assert sum(trace.copied.values()) == 6 * KB


@pytest.mark.parametrize("fake", [False, True])
def test_a_card_of_a_size_refuses_what_would_need_more(fake: bool) -> None:
    with MemoryTrace() as whole:
        train()
    needs = whole.peak(CARD).size

    def run(size: int) -> MemoryTrace:
        with MemoryTrace({CARD: size}) as trace:
            if fake:
                with FakeTensorMode(), trace:
                    train()
            else:
                train()
        return trace

    assert run(int(needs * 1.05)).free(CARD) == int(needs * 1.05)
    with pytest.raises(torch.OutOfMemoryError, match="GB of cpu were allocated"):
        run(int(needs * 0.9))
    gc.collect()
    trace = MemoryTrace({CARD: 4 * KB})
    with trace, pytest.raises(torch.OutOfMemoryError):
        torch.zeros(KB + 1)
    assert trace.free(CARD) == 4 * KB, "what was refused is gone"


def test_segments_are_cut_joined_and_used_again() -> None:
    segments = Segments()
    segments.allocate(0, 512)
    segments.allocate(1, 1024)
    assert segments.size == STEP, "small blocks share a segment"
    segments.allocate(2, 3 * KB * KB)
    assert segments.size == STEP + MIDDLE
    segments.allocate(3, 19 * KB * KB)
    assert segments.size == STEP + MIDDLE + 20 * KB * KB, "a large block has its own, in steps of 2 MiB"
    for number in (2, 1, 0):
        segments.free(number)
    segments.allocate(4, KB * KB)
    segments.allocate(5, KB * KB)
    segments.allocate(6, 19 * KB * KB)
    assert segments.size == STEP + MIDDLE + 20 * KB * KB, "neighbors that were freed are one block again"
