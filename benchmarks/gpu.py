"""``python -m benchmarks.gpu``: what this machine's graphics card makes of it, in seconds, memory and accuracy.

* Learning at Stable Diffusion 1.5's size (random weights, ``full_size``), 512 px, the paper's face preset, by the product's
  own training loop, with every memory plan: seconds per optimizer step after a warm-up step, of 5 and 15 steps, peak memory,
  and the floating-point operations of a step (counted with PyTorch's counter while one runs with the fast plan, so without
  what others compute again) as a share of this card's rate for bfloat16 matrices of 8192 x 8192. Beside it the plain UNet
  step, as DreamBooth makes it: no word, no offsets, no pass that looks at the photo, computed alike.
* Sampling at that size: the stock prompt against the word, in turns. Both use the MODEL that holds the concept, so that
  ComfyUI need not patch weights between runs; for the stock prompt it does nothing else.
* The mini world: the demo's photo learned by the node, drawn by stock nodes, and how far the noise predictions on 64 probes are
  from those of a concept learned in float32 on this machine's CPU, as a share of what tuning moved (see ``determinism``).

Learning is at a rate so low that random weights, which have nothing to learn, stay as they are: it changes no duration.
Without a card nothing is measured. ``--tiny`` runs all of it on the CPU at tiny shapes, to see that it runs.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from e4t_core.concept import Concept
from e4t_core.loop_settings import LoopSettings
from e4t_core.memory_plan import FAST, PLANS, MemoryPlan
from e4t_core.methods.e4t.method import E4T
from e4t_core.methods.e4t.settings import FACE
from e4t_core.photos import Photos
from e4t_core.run import BaseModel, Method, StepReport
from e4t_core.training import train

from . import host
from .arms import WORD, load_subjects
from .determinism import PROBES, Case, drawn_by, personalize, photo_latent, predictions
from .full_size import CLIP_LAYERS, CLIP_WIDTH, make_domain, random_state
from .plain_unet import PlainUNet
from .report import table

RATE = 1e-7
GUIDANCE = 7.0
NO_CARD = "no graphics card: nothing was measured"


@dataclass(frozen=True)
class Sizes:
    """How large all of it is.

    Attributes:
        matrix: side of the matrices whose product gives the card's rate.
        side: of the latent.
        batch: effective batch of a step.
        plans: names of memory plans, and the micro-batch to learn with.
        steps: of a run, the first of which is not counted.
        sampling_steps: of a picture.
        runs: of each kind, in turns.
        find_subject: as the preset says; else without those passes.
        changes: of the mini face domain's preset.
        probes: noise levels that predictions are compared at.
        pictures: of the mini world, drawn at once.
    """

    matrix: int = 8192
    side: int = 64
    batch: int = 16
    plans: tuple[tuple[str, int], ...] = (("fast", 4), ("fast", 16), ("balanced", 16), ("lean", 16), ("leanest", 4))
    steps: int = 4
    sampling_steps: int = 20
    runs: int = 5
    find_subject: bool = FACE.find_subject
    changes: Mapping[str, Any] = field(default_factory=dict)
    probes: int = PROBES
    pictures: int = 4


TINY = Sizes(256, 8, 2, (("fast", 2), ("leanest", 1)), 2, 1, 1, False, {"steps": 1, "batch": 2, "micro_batch": 2}, 8, 1)


def settle() -> None:
    """Everything that was begun on the card has ended."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], object], count: int = 1) -> float:
    """Seconds of one of ``count`` runs."""
    settle()
    started = time.perf_counter()
    for _ in range(count):
        run()
    settle()
    return (time.perf_counter() - started) / count


def matrix_rate(side: int, device: torch.device) -> float:
    """Floating-point operations per second of a bfloat16 matrix product."""
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    seconds_of(lambda: a @ b, 3)
    return 2 * side**3 / seconds_of(lambda: a @ b, 20)


@dataclass(frozen=True)
class FullSize:
    """Stable Diffusion 1.5's shapes, loaded by ComfyUI; in the tiny run the mini world's in their place."""

    model: Any
    clip: Any
    base: BaseModel
    photos: Photos

    @classmethod
    def load(cls, sizes: Sizes) -> FullSize:
        import comfy.sd

        if sizes is TINY:
            loaded = host.load_base(host.mini_checkpoint())
            model, clip = loaded.model, loaded.clip
        else:
            model, clip, _, _ = comfy.sd.load_state_dict_guess_config(random_state(device="cuda"), output_vae=False)
        compute = host.pack("nodes.host.networks.compute_type")
        unet = host.pack("nodes.host.networks.base_model").ComfyUNet(model, compute.compute_type(model.load_device))
        rounded = unet.dtype == torch.bfloat16
        text = host.pack("nodes.host.networks.text_encoder").ComfyTextEncoder(clip, rounded)
        generator = torch.Generator().manual_seed(1)
        photos = Photos(
            torch.randn(1, 4, sizes.side, sizes.side, generator=generator),
            torch.randn(1, CLIP_LAYERS, CLIP_WIDTH, generator=generator),
        )
        return cls(model, clip, BaseModel(unet, text, "random"), photos)


def operations(method: Method, full: FullSize, settings: LoopSettings) -> float:
    """Floating-point operations of one optimizer step, as PyTorch counts them while it runs."""
    marks = [0]
    with FlopCounterMode(display=False) as counter:

        def on_step(report: StepReport) -> None:
            if report.phase == "subject" or (report.phase == "tuning" and report.micro == report.micros):
                marks.append(counter.get_total_flops())

        plan = replace(FAST, micro_batch=min(4, settings.batch))
        train(method, full.base, full.photos, replace(settings, steps=1), seed=0, on_step=on_step, plan=plan)
    return float(marks[-1] - marks[-2])


def learn(method: Method, full: FullSize, settings: LoopSettings, plan: MemoryPlan) -> tuple[Concept, float, float]:
    """The concept, the median seconds of a step, and the seconds that the run took besides its steps."""
    ends: list[float] = []

    def on_step(report: StepReport) -> None:
        if report.phase == "tuning" and report.micro == report.micros:
            settle()
            ends.append(time.perf_counter())

    started = time.perf_counter()
    with host.pack("nodes.host.networks.compute_type").bfloat16_products(full.base.unet.device):
        concept = train(method, full.base, full.photos, settings, seed=0, on_step=on_step, plan=plan)
    settle()
    step = median(end - before for before, end in pairwise(ends))
    return concept, step, time.perf_counter() - started - (ends[-1] - ends[0]) - step


def learning(sizes: Sizes, full: FullSize, rate: float) -> Concept | None:
    """Prints the table of learning; the concept that the last run of E4T gave, if one fitted the card."""
    rows, kept = [], None
    methods: dict[str, Method] = {"E4T": E4T(make_domain(full.base.unet)), "plain UNet": PlainUNet()}
    for name, method in methods.items():
        counted = None
        for plan_name, micro_batch in sizes.plans:
            settings = replace(
                FACE, steps=sizes.steps, batch=sizes.batch, learning_rate=RATE, find_subject=sizes.find_subject
            )
            plan = replace(PLANS[plan_name], micro_batch=micro_batch)
            label = f"{name}, {plan_name}, micro-batch {micro_batch}"
            try:
                if counted is None:
                    counted = operations(method, full, settings)
                forget_peaks()
                concept, step, besides = learn(method, full, settings, plan)
            except torch.OutOfMemoryError:
                rows.append((label, "does not fit", *["-"] * 8))
                continue
            kept = concept if isinstance(method, E4T) else kept
            numbers = (
                step,
                5 * step,
                15 * step,
                besides,
                counted / 1e12,
                counted / step / 1e12,
                100 * counted / step / rate,
            )
            rows.append((label, *(f"{n:.3g}" for n in numbers[:-1]), f"{numbers[-1]:.1f} %", *peaks()))
    header = (
        f"learning in {full.base.unet.dtype}",
        "s/step",
        "5 steps, derived",
        "15 steps, derived",
        "besides",
        "TFLOP/step",
        "TFLOP/s",
        "of the rate",
    )
    print(table((*header, "GB allocated", "GB reserved"), rows), end="\n\n", flush=True)
    return kept


def forget_peaks() -> None:
    """Begin to count the card's memory anew, without what earlier runs left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peaks() -> tuple[str, str]:
    """The most memory of the card since then that tensors took, and that PyTorch held for them, in 1e9 bytes."""
    if not torch.cuda.is_available():
        return "-", "-"
    return f"{torch.cuda.max_memory_allocated() / 1e9:.1f}", f"{torch.cuda.max_memory_reserved() / 1e9:.1f}"


@torch.inference_mode()
def sampling(sizes: Sizes, full: FullSize, concept: Concept) -> None:
    """Prints the table of sampling."""
    import comfy.sample
    from comfy.model_management import get_torch_device, load_models_gpu

    store = host.pack("nodes.host.learning.result_store").STORE
    text, unet = full.base.text, full.base.unet
    with torch.inference_mode(False), torch.no_grad():
        empty = text.empty().detach().cpu()
        held = host.pack("nodes.host.sampling.held_concept").HeldConcept.of(concept, empty, unet.parameters())
    model = host.pack("nodes.host.sampling.patched_model").with_concept(full.model, held, store.prompts)
    clip = host.pack("nodes.host.prompt.concept_clip").with_concept(
        full.clip, concept.trigger, concept.fingerprint, concept.embedding, store.prompts
    )
    negative = host.encode(clip, [""])
    prompts = {kind: host.encode(clip, [f"a photo of {kind}"]) for kind in ("a face", concept.trigger)}
    start = torch.randn(1, 4, sizes.side, sizes.side, generator=torch.Generator().manual_seed(0))

    def draw(positive: Any) -> None:
        comfy.sample.sample(
            model, start, sizes.sampling_steps, GUIDANCE, "euler", "normal", positive, negative,
            torch.zeros_like(start), disable_pbar=True,
        )  # fmt: skip

    seconds: dict[str, list[float]] = {kind: [] for kind in prompts}
    for number in range(sizes.runs + 1):
        for kind, positive in prompts.items():
            took = seconds_of(lambda positive=positive: draw(positive))  # type: ignore[misc]
            if number:
                seconds[kind].append(took)
    stock, word = (median(took) for took in seconds.values())
    load_models_gpu([model])
    device, dtype = get_torch_device(), full.model.model.get_dtype_inference()

    def forward(rows: int) -> Callable[[], Tensor]:
        z = torch.randn(rows, 4, sizes.side, sizes.side, device=device, dtype=dtype)
        t, context = torch.full((rows,), 500.0, device=device), empty.to(device, dtype).expand(rows, -1, -1)
        return lambda: full.model.model.diffusion_model(z, t, context=context, transformer_options={})

    one, two = forward(1), forward(2)
    seconds_of(one, 3), seconds_of(two, 3)
    together, apart = seconds_of(two, sizes.sampling_steps), 2 * seconds_of(one, 2 * sizes.sampling_steps)
    rows = [
        (f"stock, {sizes.sampling_steps} steps of euler, CFG {GUIDANCE:g}", f"{stock:.3f}", spread(seconds["a face"])),
        ("with the word", f"{word:.3f}", spread(seconds[concept.trigger])),
        ("with the word / stock", f"{word / stock:.2f}", ""),
        ("UNet, one batch of 2", f"{together:.4f}", ""),
        ("UNet, two batches of 1", f"{apart:.4f}", ""),
    ]
    print(table((f"sampling, {dtype}", "s (median)", "all"), rows), end="\n\n", flush=True)


def spread(values: Sequence[float]) -> str:
    """Least and most."""
    return f"{min(values):.3f} to {max(values):.3f}"


def hide_card() -> None:
    """For this process; it counts until something asks for cards."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def in_float32(changes: Mapping[str, Any], probes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The demo photo's latent, and predictions of the concept learned from it and of the untuned one; in a process of its own."""
    assert not torch.cuda.is_available()
    products = host.pack("nodes.host.networks.compute_type")
    products.has_matrix_units = products.has_vector_instructions = lambda: False
    base = host.load_base(host.mini_checkpoint())
    latent, found = photo_latent(base), []
    for case in (Case("tuned", dict(changes)), Case("untuned", {**changes, "steps": 0})):
        found.append(predictions(base, drawn_by(personalize(base, case)[0].args[0]), latent, probes).numpy())
    return latent.numpy(), found[0], found[1]


def mini_world(sizes: Sizes, reference: tuple[np.ndarray, np.ndarray, np.ndarray], out: Path) -> None:
    """Prints the table of the mini world, and writes the photo and pictures with the word side by side."""
    latent, tuned, untuned = reference
    base = host.load_base(host.mini_checkpoint())
    steps = host.Sampling("euler", min(sizes.sampling_steps, host.EULER.steps))
    rows: list[tuple[str, ...]] = []
    for seed in (1, 0):
        output, seconds = personalize(base, Case("", dict(sizes.changes), seed))
        made = predictions(base, drawn_by(output.args[0]), torch.from_numpy(latent), sizes.probes).numpy()
        share = np.sqrt(np.square(made - tuned).mean() / np.square(tuned - untuned).mean())
        what = "the same seed, learned second" if seed == 0 else "another seed, learned first"
        rows.append((what, f"{seconds:.2f}", f"{share:.4f}"))
    sheet = [load_subjects("held-out", 1)[0].photo]
    for kind, parts in ((WORD, host.Base(output.args[0], output.args[1], base.vae)), ("a face", base)):
        for _ in range(2):  # the first one loads and patches weights
            started = time.perf_counter()
            pictures = host.draw(parts, [f"a photo of {kind}"], range(sizes.pictures), steps)
            seconds = time.perf_counter() - started
        sheet += list(pictures) if kind == WORD else []
        rows.append((f"{sizes.pictures} pictures, “a photo of {kind}”", f"{seconds:.2f}", ""))
    print(table(("mini world", "s", "predictions differ, of what tuning moved"), rows), flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((torch.cat(sheet, dim=2) * 255).round().byte().movedim(0, -1).numpy()).save(out)


def measure(sizes: Sizes, out: Path) -> None:
    """Everything, one table after the other."""
    with multiprocessing.get_context("spawn").Pool(1, initializer=hide_card) as pool:
        waiting = pool.apply_async(in_float32, (sizes.changes, sizes.probes))
        full = FullSize.load(sizes)
        reference = waiting.get()  # nothing else computes while durations are taken
    rate = matrix_rate(sizes.matrix, full.base.unet.device)
    print(f"bfloat16 matrices of {sizes.matrix} x {sizes.matrix}: {rate / 1e12:.4g} TFLOP/s\n", flush=True)
    concept = learning(sizes, full, rate)
    if concept is not None:
        sampling(sizes, full, concept)
    del full, concept
    gc.collect()
    mini_world(sizes, reference, out)


def main() -> int:
    """The command; it has no gates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU, to see that it runs")
    parser.add_argument("--out", type=Path, default=host.ROOT / "runs" / "gpu.png", help="photo and pictures of it")
    options = parser.parse_args()
    if options.tiny:
        hide_card()
    elif not torch.cuda.is_available():
        print(NO_CARD)
        return 0
    host.import_comfyui()
    where = "tiny shapes on the CPU, no measurement" if options.tiny else torch.cuda.get_device_name()
    print(f"{where}, PyTorch {torch.__version__}, {date.today()}\n", flush=True)
    measure(TINY if options.tiny else Sizes(), options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
