"""``python -m benchmarks.cost``: what tuning and sampling take, counted at Stable Diffusion 1.5's and 2.1's true shapes.

Nothing of that size is computed: the product's own tuning runs on fake tensors (``fake_world``), while a tracker follows every
tensor's memory (``memory_trace``) and PyTorch's formulas count the operations. For each memory plan it prints

* the peak of the card: tensors as its allocator rounds them, and with what the driver takes; what PyTorch would reserve; what
  lay there at the peak;
* the peak of RAM, and the bytes that one optimizer step copies to the card and back;
* the operations of a step beside those of the feature pass and the denoising pass, forward and backward.

Then it says how far a trace at the mini world's shapes is from what a real run of the same on this CPU allocates, as PyTorch's
profiler sees it; what an evaluation with the word takes beside a stock one (``sampling_cost``); and what looking for a
subject in a photo takes (``search_cost``).

It stands for a card that computes in bfloat16. Not counted: what kernels take for themselves while they run, and what other
programs hold. No weights are read but the mini world's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from e4t_core.memory_plan import PLANS, MemoryPlan
from e4t_core.methods.e4t.method import E4T
from e4t_core.methods.e4t.settings import FACE
from e4t_core.photos import Photos
from e4t_core.run import BaseModel, StepReport
from e4t_core.training import train

from . import host
from .fake_world import CARD, RAM, FakeBase, fake_card, family_state, file_state, load, set_to
from .full_size import CLIP_LAYERS, CLIP_WIDTH, make_domain
from .memory_trace import Block, MemoryTrace
from .operations import Operations
from .random_checkpoint import FAMILIES
from .report import gate, table
from .sampling_cost import CASES, evaluations
from .search_cost import Search, show_search, trace_search

SIDE, BATCH = 64, 16
DRIVER = 0.6e9
"""Bytes of a card that CUDA takes for itself."""
MOST = {"fast": 23.0, "balanced": 15.0, "lean": 8.0, "leanest": 6.0}
"""GB of a card that each plan is for, and may take with Stable Diffusion 1.5."""
OPERATIONS = 1.02
AGREEMENT = 0.1

# Where memory was asked for -> what it is; the first line that fits both "file:function" of this project and of all code.
CATEGORIES = (
    ("", "torch/optim/adam.py:Adam._init_group", "moments"),
    ("working_weights.py:_Part._moments_to", "", "moments"),
    ("", "torch/optim/", "of AdamW's step"),
    ("trained_weight.py:TrainedWeight.plain", "", "masters"),
    ("working_weights.py:_Part.__init__", "", "working weights"),
    ("method.py:_filled", "", "offsets, encoder"),
    ("cost.py:make_domain", "", "domain"),
    ("seeded_linear.py", "", "domain"),
    ("weight_offsets.py:MatrixOffset.__init__", "", "domain"),
    ("stored_difference.py", "", "concept"),
    ("tuned_weights.py:TunedWeights.differences", "", "concept"),
    ("method.py:E4TRun.concept", "", "concept"),
    ("working_weights.py", "", "of AdamW's step"),
    ("weight_offsets.py", "", "of AdamW's step"),
    ("text_encoder.py", "", "text encoder's pass"),
    ("nodes/host/networks/base_model.py", "", "activations"),
    ("methods/e4t/", "", "activations"),
)


def category(block: Block) -> str:
    """What a block of memory is."""
    if block.label:
        return block.label
    found = next((name for ours, all_, name in CATEGORIES if ours in block.place and all_ in block.inner), "other")
    if not block.backward or found not in ("other", "activations"):
        return found
    if block.outlived:
        return "gradients"
    return "of the backward pass" if found == "other" else "computed again"


@dataclass(frozen=True)
class Tuning:
    """What tuning takes.

    Attributes:
        micro_batch: of the plan.
        card, ram: bytes at the peak.
        reserved: bytes of the card that PyTorch's allocator would hold.
        on_card, in_ram: bytes at the peak by category.
        to_card, to_ram: bytes that one optimizer step copies.
        operations: floating-point operations of one optimizer step.
        seconds: that counting took.
    """

    micro_batch: int
    card: int
    ram: int
    reserved: int
    on_card: Counter[str]
    in_ram: Counter[str]
    to_card: int
    to_ram: int
    operations: int
    seconds: float


@dataclass(frozen=True)
class Sizes:
    """Attributes:
    side: of the latent.
    batch: effective batch.
    find_subject: as the preset says; else without those passes.
    """

    side: int = SIDE
    batch: int = BATCH
    find_subject: bool = FACE.find_subject


SIZES, TINY = Sizes(), Sizes(16, 4, False)


def photos_of(side: int) -> Photos:
    """One photo's latent and CLIP features, random."""
    generator = torch.Generator().manual_seed(1)
    return Photos(
        torch.randn(1, 4, side, side, generator=generator),
        torch.randn(1, CLIP_LAYERS, CLIP_WIDTH, generator=generator),
    )


def tune(
    base: BaseModel, plan: MemoryPlan, sizes: Sizes, domain_on: torch.device, on_step: Callable[[StepReport], object]
) -> None:
    """Two steps of the paper's face preset, set-up and fixed word included."""
    settings = replace(FACE, steps=2, batch=sizes.batch, find_subject=sizes.find_subject)
    method = E4T(make_domain(base.unet, domain_on))
    train(method, base, photos_of(sizes.side), settings, seed=0, on_step=on_step, plan=plan)


def trace_tuning(base: FakeBase, plan: MemoryPlan, sizes: Sizes) -> Tuning:
    """Tuning on a card that computes in bfloat16."""
    started = time.perf_counter()
    trace, operations = MemoryTrace(), Operations()
    compute = host.pack("nodes.host.networks.compute_type")
    # Of the last two steps: operations and copied bytes so far.
    marks: list[tuple[int, int, int]] = []

    def on_step(report: StepReport) -> None:
        if report.phase == "tuning" and report.micro == report.micros:
            copied = trace.copied[RAM.type, CARD.type], trace.copied[CARD.type, RAM.type]
            marks.append((operations.total, *copied))

    with trace:
        trace.follow(base.weights(), "ComfyUI's copy")
        networks = base.networks(torch.bfloat16)
    trace.label_all(CARD.type, "text encoder")
    with ExitStack() as within:
        for one in (fake_card(), trace, operations, set_to(compute, uses_autocast=lambda _device: True)):
            within.enter_context(one)
        within.enter_context(compute.bfloat16_products(CARD))
        plan = on_a_card_of(MOST[plan.name] * 1e9 - DRIVER - trace.now[CARD.type], plan, networks, sizes)
        tune(networks, plan, sizes, RAM, on_step)
    card, ram = trace.peak(CARD.type), trace.peak(RAM.type)
    counted, to_card, to_ram = (after - before for before, after in zip(*marks, strict=True))
    return Tuning(
        plan.micro_batch,
        card.size,
        ram.size,
        trace.reserved(CARD.type),
        card.by(category),
        ram.by(category),
        to_card,
        to_ram,
        counted,
        time.perf_counter() - started,
    )


def on_a_card_of(free: float, plan: MemoryPlan, networks: BaseModel, sizes: Sizes) -> MemoryPlan:
    """The plan with the micro-batch that the product chooses where so many bytes are free; its smallest, where none fits."""
    settings = replace(FACE, batch=sizes.batch)
    needs, host_memory = host.pack("e4t_core.memory_need"), host.pack("nodes.host.learning.memory")
    work = host_memory.work_of(E4T(make_domain(networks.unet, RAM)), settings, networks.unet, sizes.side**2)
    work = replace(work, in_ram=False)
    found = [one for one in needs.candidates(plan.name, 0, sizes.batch) if one.name == plan.name]
    fitting = [one for one in found if needs.need(one, work).card <= free]
    return replace(plan, micro_batch=(fitting or found[-1:])[0].micro_batch)


def two_passes(base: FakeBase, sizes: Sizes) -> int:
    """Floating-point operations of the feature pass and the denoising pass of a batch, forward and backward."""
    networks = base.networks(torch.bfloat16)
    unet, width = networks.unet, networks.text.width
    with fake_card(), Operations() as operations:
        weights = {name: weight.detach().requires_grad_() for name, weight in unet.parameters().items()}
        z = torch.empty(sizes.batch, 4, sizes.side, sizes.side)
        t, context = torch.empty(sizes.batch), torch.empty(sizes.batch, 77, width, requires_grad=True)
        with unet.using(weights):
            # Gradients reach the features by way of the context.
            context = context + unet.features(z, t, context.detach()).sum()
            unet.denoise(z, t, context).sum().backward()
    return operations.total


@dataclass(frozen=True)
class Job:
    """One trace, in a process of its own.

    Attributes:
        family: number in ``FAMILIES``; -1: the mini world.
        plan: the name of a memory plan; empty: only what a step of all plans is compared with.
    """

    family: int
    plan: str


def state_of(family: int) -> Callable[[], dict[str, Tensor]]:
    """A checkpoint of a family in ``FAMILIES``, or of the mini world (-1)."""
    if family >= 0:
        return lambda: family_state(FAMILIES[family])
    path = host.mini_checkpoint()
    return lambda: file_state(path)


def run_job(job: Job) -> Tuning | int:
    """What tuning takes with a plan, or the operations that it is compared with."""
    host.import_comfyui()
    torch.set_num_threads(1)
    base = load(state_of(job.family))
    sizes = TINY if job.family < 0 else SIZES
    return trace_tuning(base, PLANS[job.plan], sizes) if job.plan else two_passes(base, sizes)


def agreement(plan: MemoryPlan) -> tuple[int, int]:
    """Bytes at the peak of two steps at the mini world's shapes on a CPU: as traced, and as PyTorch's profiler sees a real run."""
    plan = replace(plan, micro_batch=2)
    path = host.mini_checkpoint()
    fake = load(lambda: file_state(path), torch.float32, CARD).networks(torch.float32)
    trace = MemoryTrace()
    with fake_card(CARD), trace:
        tune(fake, plan, TINY, CARD, lambda _report: None)
    loaded = host.load_base(path)
    real = FakeBase(loaded.model, loaded.clip).networks(torch.float32)
    measured = allocated(lambda: tune(real, plan, TINY, CARD, lambda _report: None))
    return trace.peak(CARD.type).size, measured


def allocated(run: Callable[[], object]) -> int:
    """The most bytes that a run had allocated on the CPU at one time, by PyTorch's profiler: kernels' own memory included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    found = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    size = highest = 0
    for event in sorted(found, key=lambda event: event.start_ns()):
        size += event.nbytes()
        highest = max(highest, size)
    return highest


def run_agreement(plan: str) -> tuple[int, int]:
    """See :func:`agreement`."""
    host.import_comfyui()
    torch.set_num_threads(1)
    return agreement(PLANS[plan])


def run_sampling(family: int) -> list[tuple[int, int]]:
    """Operations of a stock and of a refined evaluation in all cases."""
    host.import_comfyui()
    torch.set_num_threads(1)
    return evaluations(state_of(family), TINY.side if family < 0 else SIDE)


def run_search(family: int) -> list[Search]:
    """What looking for a subject takes."""
    host.import_comfyui()
    torch.set_num_threads(1)
    base = load(state_of(family))
    return trace_search(base, (TINY.side if family < 0 else SIDE) // 2)


def in_gigabytes(size: float) -> str:
    """As the tables have it, in 1e9 bytes."""
    return f"{size / 1e9:.2f}"


def show_sampling(name: str, found: list[tuple[int, int]]) -> None:
    """Prints the table of evaluations."""
    rows = [
        (case.name, *(f"{count / 1e9:.1f}" for count in pair), f"{pair[1] / pair[0]:.3f}")
        for case, pair in zip(CASES, found, strict=True)
    ]
    print(table((f"{name}: one evaluation", "stock, GFLOP", "with the word", "/ stock"), rows), end="\n\n")


def show_tuning(name: str, found: dict[str, Tuning], ideal: int) -> None:
    """Prints both tables of a family."""
    header = (
        "plan",
        *("micro-batch", "card, GB", "with driver", "reserved", "RAM, GB", "to card", "to RAM"),
        *("TFLOP/step", "/ two passes", "s to count"),
    )
    rows = []
    for plan, tuning in found.items():
        sizes = (tuning.card, tuning.card + DRIVER, tuning.reserved, tuning.ram, tuning.to_card, tuning.to_ram)
        rows.append(
            (
                plan,
                tuning.micro_batch,
                *map(in_gigabytes, sizes),
                f"{tuning.operations / 1e12:.2f}",
                f"{tuning.operations / ideal:.3f}",
                f"{tuning.seconds:.0f}",
            )
        )
    print(f"{name}: tuning\n\n{table(header, rows)}\n")
    for place in ("on_card", "in_ram"):
        whole: Counter[str] = sum((getattr(tuning, place) for tuning in found.values()), Counter())
        names = [name for name, size in whole.most_common() if size >= 5e6 * len(found)]
        rest = {
            plan: sum(size for key, size in getattr(t, place).items() if key not in names) for plan, t in found.items()
        }
        rows = [(name, *(in_gigabytes(getattr(t, place)[name]) for t in found.values())) for name in names]
        where = "on the card" if place == "on_card" else "in RAM"
        rows.append(("the rest", *map(in_gigabytes, rest.values())))
        print(f"{table((f'at the peak {where}, GB', *found), rows)}\n")


def main() -> int:
    """The command; its exit status is 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="the mini world's shapes only, to see that it runs")
    parser.add_argument("--plans", default=",".join(PLANS), help="only these, separated by commas")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    started = time.perf_counter()
    plans = options.plans.split(",")
    families = {-1: "mini world"} if options.tiny else {number: family.name for number, family in enumerate(FAMILIES)}
    jobs = [Job(family, plan) for family in families for plan in (*reversed(plans), "")]
    host.import_comfyui()
    host.mini_checkpoint()
    found: dict[Job, Tuning] = {}
    ideals: dict[int, int] = {}
    with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=1) as pool:
        in_turn: Any = map if options.processes == 1 else partial(pool.imap, chunksize=1)
        for job, made in zip(jobs, in_turn(run_job, jobs), strict=True):
            if isinstance(made, int):
                ideals[job.family] = made
            else:
                found[job] = made
            print(f"{time.perf_counter() - started:6.0f} s  {families[job.family]} {job.plan}", file=sys.stderr)
        agreed, sampled = list(in_turn(run_agreement, plans)), list(in_turn(run_sampling, families))
        searched = list(in_turn(run_search, families))
    for family, name in families.items():
        show_tuning(name, {plan: found[Job(family, plan)] for plan in plans}, ideals[family])
    print("two steps at the mini world's shapes on a CPU, float32, GB\n")
    rows = [
        (plan, *map(in_gigabytes, pair), f"{pair[0] / pair[1]:.3f}") for plan, pair in zip(plans, agreed, strict=True)
    ]
    print(table(("plan", "traced", "allocated", "traced / allocated"), rows), end="\n\n")
    for name, counts, searches in zip(families.values(), sampled, searched, strict=True):
        show_sampling(name, counts)
        show_search(name, searches, DRIVER)
    print(f"{time.perf_counter() - started:.0f} s\n")
    met = [
        gate(f"{plan}, as traced / as allocated - 1", abs(a / b - 1), most=AGREEMENT)
        for plan, (a, b) in zip(plans, agreed, strict=True)
    ]
    if options.tiny:
        return 0 if all(met) else 1
    # The gates are Stable Diffusion 1.5's; 2.1 has a text encoder of three times the size.
    for plan in plans:
        tuning, ideal = found[Job(0, plan)], ideals[0]
        met.append(gate(f"{plan}: GB of the card", (tuning.card + DRIVER) / 1e9, most=MOST[plan]))
        if plan == "fast":
            met.append(gate(f"{plan}: operations / two passes", tuning.operations / ideal, most=OPERATIONS))
    for case, (stock, refined) in zip(CASES, sampled[0], strict=True):
        met.append(gate(f"{case.name}: refined / stock", refined / stock, most=case.most))
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
