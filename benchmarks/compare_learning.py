"""A method's concept after several numbers of steps, with what each of them cost.

Cost is said in two ways: seconds of one core, and passes of a sample through the UNet, which are the same on every machine.
A pass with its backward pass counts 1, one without 1/3 (a backward pass takes about twice as long as a forward pass), and the
look at a noisy photo, which passes the first half of the network, its share of the operations.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from e4t_core.concept import Concept
from e4t_core.layer_contexts import Context
from e4t_core.loop_settings import LoopSettings
from e4t_core.memory_plan import MemoryPlan
from e4t_core.photos import Photos
from e4t_core.run import BaseModel, Method, Run, StepReport
from e4t_core.trained_weight import made
from e4t_core.training import train
from miniworld.training_unet import TrainingUNet
from miniworld.unet import UNetModel, UNetShape

from .narrow_drawing import bfloat16_products

WITHOUT_BACKWARD = 1 / 3


class CountingUNet(TrainingUNet):
    """The mini world's UNet, which counts the samples that pass it.

    Attributes:
        passes: so far, see the module.
    """

    def __init__(self, model: UNetModel) -> None:
        super().__init__(model)
        self.passes = 0.0
        self._share = feature_share(model.shape)

    def denoise(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        found = super().denoise(z, t, context)
        self.passes += len(z) * (1.0 if found.requires_grad else WITHOUT_BACKWARD)
        return found

    def features(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        found = super().features(z, t, context)
        self.passes += len(z) * (1.0 if found.requires_grad else WITHOUT_BACKWARD) * self._share
        return found


@cache
def feature_share(shape: UNetShape) -> float:
    """The operations of the look at a noisy photo, as a share of a whole forward pass."""
    with torch.device("meta"):
        unet = TrainingUNet(UNetModel(shape))
        z, t, context = torch.zeros(1, shape.latent_channels, 16, 16), torch.zeros(1), torch.zeros(1, 77, shape.context)
    counted = []
    for passed in (unet.features, unet.denoise):
        with torch.no_grad(), unet.using({}), FlopCounterMode(display=False) as counter:
            passed(z, t, context)
        counted.append(counter.get_total_flops())
    return counted[0] / counted[1]


@dataclass(frozen=True, eq=False)
class Learned:
    """What a person gets who sets the steps to this number.

    Attributes:
        steps: optimizer steps.
        concept: as it is then.
        seconds: of one core, from the photo's latents to the finished concept.
        passes: of samples, see the module.
    """

    steps: int
    concept: Concept
    seconds: float
    passes: float


class Watched:
    """A method whose run can be looked at from outside while it goes on."""

    def __init__(self, method: Method) -> None:
        self.method, self.name = method, method.name
        self.run: Run | None = None

    def trained(self, settings: Any, unet: Any) -> Any:
        return self.method.trained(settings, unet)

    def start(self, base: BaseModel, photos: Photos, settings: Any, seed: int, trigger: str, plan: MemoryPlan) -> Run:
        self.run = self.method.start(base, photos, settings, seed, trigger, plan)
        return self.run


def learn(
    method: Method, base: BaseModel, photos: Photos, settings: LoopSettings, points: Sequence[int], seed: int = 0
) -> list[Learned]:
    """The concept after each number of steps.

    Where the learning rate falls towards the end, each number is a run of its own: halfway through a longer one the rate has not
    fallen yet, and the concept would be worse than need be. Otherwise one run passes all of them.

    Args:
        base: its UNet is a :class:`CountingUNet`.
        settings: their steps do not matter.
        points: numbers of steps, ascending.

    Raises:
        TuningError: as of ``train``.
    """
    # A run of no steps prepares less than others do.
    alone = len(points) > 1 and (settings.rate_decay or points[0] == 0)
    if alone:
        rest = points[1:]
        return learn(method, base, photos, settings, points[:1], seed) + learn(
            method, base, photos, settings, rest, seed
        )
    unet, watched, last = base.unet, Watched(method), points[-1]
    assert isinstance(unet, CountingUNet)
    found: list[Learned] = []
    begun, counted = time.process_time(), unet.passes

    def on_step(report: StepReport) -> None:
        nonlocal begun, counted
        if report.phase != "tuning" or report.micro < report.micros or report.step not in points[:-1]:
            return
        looked, passed = time.process_time(), unet.passes
        assert watched.run is not None
        concept = concept_now(watched.run)
        found.append(Learned(report.step, concept, time.process_time() - begun, unet.passes - counted))
        begun += time.process_time() - looked
        counted += unet.passes - passed

    with bfloat16_products():
        concept = train(watched, base, photos, replace(settings, steps=last), seed, on_step=on_step)
    at_last = Learned(last, concept, time.process_time() - begun, unet.passes - counted)
    # A run whose loss ran away ends early, and what it had is what a person gets of any more steps.
    missing = [replace(at_last, steps=steps) for steps in points[len(found) : -1]]
    return [*found, *missing, at_last]


@torch.no_grad()
def concept_now(run: Run) -> Concept:
    """A run's concept as it is between two steps; the run goes on as if nobody had looked.

    Only E4T's run minds: its concept holds the encoder itself, frozen.
    """
    encoder = getattr(getattr(run, "words", None), "encoder", None)
    trains = {} if encoder is None else {name: p.requires_grad for name, p in encoder.named_parameters()}
    is_training = encoder is not None and encoder.training
    with run.base.unet.using(made(run.weights())):
        concept = run.concept(lambda: None)
    if encoder is None or concept.predictor is None:
        return concept
    predictor: Any = concept.predictor
    concept = replace(concept, predictor=replace(predictor, encoder=copy.deepcopy(predictor.encoder)))
    encoder.train(is_training)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(trains[name])
    return concept
