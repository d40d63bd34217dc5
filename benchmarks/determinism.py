"""``python -m benchmarks.determinism``: do equal inputs give an equal concept, and what does the micro-batch change?

The demo's photo is learned with the mini face domain, in a new process each time (so nothing is remembered): twice alike,
with the effective batch of 16 in micro-batches of 4 and of 1, from the photo a millionth darker, with another seed, and
not at all; then the same for a single step. Compared are what was learned, bit for bit, and the noise predictions of the tuned UNet on 64 fixed probes:
the photo's latent with fixed noise at 64 noise levels, the word refined for each.

A micro-batch changes in which order sums are made, nothing else. The two tolerances say what that may do:

* ONE step must agree but for rounding. In float32 another order changes a sum by about 1e-6 of itself; on a CPU with
  bfloat16 products (8 bits) such a change now and then turns into 1/256 of a number in the next product. Adam's first step
  is nearly the SIGN of the gradient, so the few weights whose gradient is smaller than its rounding go the other way.
  0.01 of what the step moved is above that, and far below what a wrong weighting of micro-batches would give; a test
  holds it too.
* All 15 steps: 0.05 of what tuning moved, set before anything was measured. Fifteen roundings of a few thousandths add
  up to less; what is more was amplified from step to step. The word is what amplifies: all of the encoder's weights push
  it the same way, and gradients through the feature pass let all of the UNet push it too. At the full rate each of the
  first steps throws the word far, and a difference of 1e-6 is 0.1 after 15 steps. The mini face domain's preset holds the word by *encoder_rate* and *stop_feature_gradient*.
* All steps again, beside what rounding alone does: the same photo a millionth darker is 1/4000 of what an 8-bit pixel can
  tell away from it. A micro-batch may change predictions by at most twice what that does.

Weights are no measure: where a gradient is near zero, its sign says nothing of the picture. Predictions do.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from e4t_core.files.domain_file import load_domain
from e4t_core.fingerprint import fingerprint

from . import host
from .report import gate, table

PROBES, AT_ONCE = 64, 8
ONE_STEP = 0.01  # of what the step moved
ALL_STEPS = 2.0  # times what a photo that differs by rounding changes
TOLERANCE = 0.05  # of what tuning moved
DARKER = 1e-6
TEMPLATE = "a photo of {}"


@dataclass(frozen=True)
class Case:
    """Attributes:
    name: in the table.
    changes: settings that differ from the domain's preset.
    seed: of the tuning.
    darker: by which share the photo is.
    """

    name: str
    changes: dict[str, Any]
    seed: int = 0
    darker: float = 0.0


@dataclass(frozen=True)
class Learned:
    """Attributes:
    content: hash of all that was learned.
    predictions: ``(64, 4, h, w)`` float32; an array, because a tensor's memory would end with the process that made it.
    seconds: that it took to learn.
    """

    content: str
    predictions: np.ndarray
    seconds: float


def learn(case: Case, threads: int) -> Learned:
    """Runs the node "E4T Personalize" and asks the tuned UNet; call it in a new process."""
    torch.set_num_threads(threads)
    base = host.load_base(host.mini_checkpoint())
    output, seconds = personalize(base, case)
    held = drawn_by(output.args[0])
    tensors = {f"difference {name}": stored.value() for name, stored in held.differences.items()}
    tensors |= {f"encoder {name}": value for name, value in held.concept.predictor.encoder.state_dict().items()}
    content = fingerprint(tensors | {"static": held.concept.embedding})
    return Learned(content, predictions(base, held, photo_latent(base)).numpy(), seconds)


def drawn_by(model: Any) -> Any:
    """The concept that a MODEL draws, as it holds it on its base."""
    return host.pack("nodes.host.sampling.patched_model").held_concepts(model)[-1]


def personalize(base: host.Base, case: Case) -> tuple[Any, float]:
    """What the node "E4T Personalize" gives for the demo's photo with its mask, and the seconds that it took."""
    from miniworld.concept_photos import subject_masks

    from .arms import WORD, load_subjects

    person = load_subjects("held-out", 1)[0]
    mask = subject_masks([person.identity], [person.scene], person.photo[None])[0]
    photo = (person.photo * (1 - case.darker)).movedim(0, -1)[None]
    loaded = host.pack("nodes.host.learning.request").LoadedDomain(load_domain(host.mini_domain()))
    node, settings = host.pack("nodes.personalize").Personalize, replace(loaded.domain.info.preset, **case.changes)
    started = time.monotonic()
    with torch.inference_mode():
        output = node.execute(
            model=base.model, clip=base.clip, vae=base.vae, domain=loaded, image=photo,
            trigger=WORD, seed=case.seed, mask=mask, settings=host.chosen(settings),
        )  # fmt: skip
    return output, time.monotonic() - started


@torch.inference_mode()
def photo_latent(base: host.Base) -> Tensor:
    """The demo photo's latent ``(1, 4, h, w)`` in the UNet's scale, float32 on the CPU."""
    from .arms import load_subjects

    latent = base.vae.encode(load_subjects("held-out", 1)[0].photo.movedim(0, -1)[None])
    return base.model.model.process_latent_in(latent).float().cpu()


@torch.no_grad()
def predictions(base: host.Base, held: Any, latent: Tensor, probes: int = PROBES) -> Tensor:
    """Noise predictions ``(probes, 4, h, w)`` of the tuned weights for the photo's latent ``(1, 4, h, w)``, on the CPU.

    They are computed in float32 on ComfyUI's device, without the shorter floats that graphics cards take for convolutions.
    """
    unet = host.pack("nodes.host.networks.base_model").ComfyUNet(base.model)
    text = host.pack("nodes.host.networks.text_encoder").ComfyTextEncoder(base.clip)
    weights = dict(unet.parameters())
    for extra in (held.shared, held.differences):
        weights |= {name: weights[name] + stored.value().to(unet.device) for name, stored in extra.items()}
    # A copy: ComfyUI keeps book of where the network itself is.
    predictor = replace(held.concept.predictor, encoder=copy.deepcopy(held.concept.predictor.encoder).to(unet.device))
    steps = (torch.arange(probes) + 0.5).mul(1000 / probes).long().to(unet.device)
    noise = torch.randn((probes, *latent.shape[1:]), generator=torch.Generator().manual_seed(0)).to(unet.device)
    latent, made = latent.to(unet.device), []
    with unet.using(weights), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for t, drawn in zip(steps.split(AT_ONCE), noise.split(AT_ONCE), strict=True):
            z = unet.schedule.add_noise(latent.expand(len(t), -1, -1, -1), drawn, t)
            words = predictor.word(unet.features(z, t, text.empty().expand(len(t), -1, -1)))
            made.append(unet.denoise(z, t, text.encode([TEMPLATE] * len(t), words)).float())
    return torch.cat(made).cpu()


def distance(one: Learned, other: Learned) -> float:
    """Root mean square of the difference of two concepts' predictions."""
    return float(np.sqrt(np.square(one.predictions - other.predictions, dtype=np.float64).mean()))


def main() -> int:
    """The command; its exit status is 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    first, again, few, single = "micro-batch 16", "the same once more", "micro-batch 4", "micro-batch 1"
    darker, seed, untuned = "a millionth darker", "another seed", "not tuned"
    cases = [
        Case(first, {"micro_batch": 16}),
        Case(again, {"micro_batch": 16}),
        Case(few, {"micro_batch": 4}),
        Case(single, {"micro_batch": 1}),
        Case(darker, {"micro_batch": 16}, darker=DARKER),
        Case(seed, {"micro_batch": 16}, seed=1),
        Case(untuned, {"micro_batch": 16, "steps": 0}),
    ]
    cases += [
        replace(case, name=f"{case.name}, one step", changes={**case.changes, "steps": 1})
        for case in cases
        if case.name in (first, few, single, darker)
    ]
    host.mini_checkpoint(), host.mini_domain()  # made once, not by every process
    found: dict[str, Learned] = {}
    # One task for each process, started afresh: an empty result store, and nothing of PyTorch's state.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for case in cases:
            found[case.name] = pool.apply(learn, (case, options.threads))
            print(f"{case.name}: {found[case.name].seconds:.1f} s", flush=True)
    rows = []
    for name, other in found.items():
        reference = found[f"{first}, one step" if name.endswith("one step") else first]
        rows.append((
            name,
            "yes" if other.content == reference.content else "no",
            f"{np.abs(other.predictions - reference.predictions).max():.2e}",
            f"{distance(other, reference):.2e}",
            f"{distance(other, reference) / distance(reference, found[untuned]):.6f}",
        ))  # fmt: skip
    print(table(("learned with", "equal bits", "largest", "rms", "rms of what tuning moved"), rows))
    equal = found[again].content == found[first].content
    equal = equal and np.array_equal(found[again].predictions, found[first].predictions)
    met = [gate("a new process learns the same, bit for bit", float(equal), least=1)]
    one = found[f"{first}, one step"]
    for name in (few, single):
        share = distance(found[f"{name}, one step"], one) / distance(one, found[untuned])
        met.append(gate(f"{name}, one step: predictions differ, of what it moved", share, most=ONE_STEP))
    moved = distance(found[first], found[untuned])
    by_rounding = distance(found[darker], found[first]) / moved
    for name in (few, single):
        share = distance(found[name], found[first]) / moved
        met.append(gate(f"{name}: predictions differ, of what tuning moved", share, most=TOLERANCE))
        met.append(gate(f"{name}: times what rounding of the photo does", share / by_rounding, most=ALL_STEPS))
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
