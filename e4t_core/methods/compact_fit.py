"""A learned concept in a small copy: thin factors of a few bits are tuned until they predict what the concept predicts.

Cutting a difference down to a few components does less of everything than the difference did, and errors of many layers add up.
So the small copy is trained as a student of the concept (distillation, Hinton et al. 2015, arXiv 1503.02531): noisy photo, noise
level and prompt go through both, and the student's factors follow the error of its prediction,

    loss = mean((student - concept)^2) / mean((concept - untuned)^2),

the square of what is lost, as a share of what tuning moved. Every forward pass has the factors rounded to their few bits, and
the gradient passes the rounding (straight-through, Bengio et al. 2013, arXiv 1308.3432): what is learned is what is kept. Each
step has noise of its own, so the loss is one of samples that were not trained with.

Nothing of the photo is learned anew: the word and what refines it stay the concept's, and prompts that are far from the photo
are among those it is asked.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..concept import Concept
from ..diffusion import DiffusionSample, draw_samples
from ..files.compact_body import CompactSettings, Part, weight_part
from ..loop_settings import LoopSettings
from ..low_rank import quantized_factors
from ..memory_need import Trained
from ..memory_plan import FAST, MemoryPlan
from ..photos import Photos
from ..quantized import QuantizedRows
from ..run import BaseModel, OnPass, Phase
from ..settings import setting
from ..templates import NEUTRAL
from ..trained_weight import TrainedWeight
from ..training import chunks
from ..unet import UNet
from ..weight_changes import Full, LowRank, Scaled, TotalDifferences, WeightChange, shared_factors

PROMPTS = (
    *NEUTRAL[:4],
    "{}",
    "a watercolor of {}",
    "a pencil sketch of {}",
    "an oil painting of {}",
    "{} in a forest",
    "{} wearing a hat",
)
"""What student and concept are asked to draw: photos as the concept was learned, and what people will ask for."""


@dataclass(frozen=True)
class CompactFitSettings(LoopSettings):
    """Settings of the fit; a factor's numbers are counted in its own root mean square, so a rate is a share of it.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    steps: int = setting(60, "Optimizer steps.", least=0, most=100_000)
    learning_rate: float = setting(
        0.03, "Every step moves every number by about this share.", least=0, most=1, step=1e-3
    )
    batch: int = setting(4, "Noise levels of the photo per step.", least=1, most=256, unit="samples")
    rate_decay: bool = setting(True, "Lowers the learning rate to zero over the second half of the steps.")
    weight_decay: float = setting(0.0, "AdamW: pull of every trained number to zero.", least=0, most=0.5, step=0.001)


class CompactFit:
    """The method, for one learned concept.

    Args:
        concept: the teacher; never changed.
        size: how small the copy is made.
    """

    name = "compact fit"
    Settings = CompactFitSettings

    def __init__(self, concept: Concept, size: CompactSettings | None = None) -> None:
        self.concept, self.size = concept, size or CompactSettings()

    def parts(self) -> dict[str, Part]:
        """How each difference of the UNet is kept, by canonical name."""
        own = (change for change in self.concept.weights if not isinstance(change, Scaled))
        return {change.name: weight_part(change.name, tuple(change.shape), self.size) for change in own}

    def trained(self, settings: LoopSettings, unet: UNet) -> Trained:
        parts = self.parts().values()
        return Trained(
            through=sum(r * n for part in parts if part.rank for r, n in part.rows()),
            held=sum(math.prod(part.shape) for part in parts),
        )

    def start(
        self,
        base: BaseModel,
        photos: Photos,
        settings: LoopSettings,
        seed: int,
        trigger: str,
        plan: MemoryPlan = FAST,
    ) -> CompactFitRun:
        """A run that trains factors.

        Raises:
            ValueError: the concept changes no weights that could be kept smaller.
        """
        if not any(part.rank for part in self.parts().values()):
            raise ValueError(f"{trigger!r} changes no weights that thin factors would make smaller.")
        return CompactFitRun(self, base, photos, settings, seed, trigger, plan)


class CompactFitRun:
    """One fit; see ``run.Run``."""

    def __init__(
        self,
        method: CompactFit,
        base: BaseModel,
        photos: Photos,
        settings: LoopSettings,
        seed: int,
        trigger: str,
        plan: MemoryPlan,
    ) -> None:
        self.teacher, self.base, self.settings, self.seed, self.trigger = method.concept, base, settings, seed, trigger
        self.micro_batch = plan.within(settings.batch).micro_batch
        self.photos = photos.for_training(settings, base.unet.device)
        self.templates: Sequence[str] = PROMPTS
        self.notes: tuple[str, ...] = ()
        self._effective = base.unet.parameters()
        self._shared = shared_factors(method.concept.weights)
        self._students: dict[str, _Student] = {}
        self._fixed: dict[str, Full] = {}
        device, dtype = plan.state_device(base.unet.device), base.unet.dtype
        parts = method.parts()
        for change in method.concept.weights:
            if isinstance(change, Scaled):
                continue
            name, part, difference = change.name, parts[change.name], change.difference()
            if part.rank:
                start = self._untuned(name).to(device, dtype)
                self._students[name] = _Student(part, difference, start, method.size.gain)
            else:
                rows = QuantizedRows.of(difference.reshape(part.matrix), part.bits)
                self._fixed[name] = Full.of(name, rows.values().reshape(part.shape))
        self._taught: dict[int, tuple[Tensor, Tensor]] = {}
        self._moved = 1.0

    def _lessons(self) -> int:
        """Samples that are trained with, and those that the loop looks at after its last step."""
        return (self.settings.steps + 1) * self.settings.batch

    def _untuned(self, name: str) -> Tensor:
        """A weight of the base with the domain's offset, float32 on the UNet's device."""
        weight = self._effective[name].float()
        if name not in self._shared:
            return weight
        p, q = self._shared[name]
        return weight * (1 + p.to(weight) @ q.to(weight).T)

    def passes(self) -> Mapping[Phase, int]:
        looks = math.ceil(self._lessons() / self.micro_batch) + math.ceil(self.settings.batch / self.micro_batch)
        return {"subject": looks}

    @torch.no_grad()
    def prepare(self, on_pass: OnPass) -> None:
        """Ask the concept for its contexts and predictions, all at once, so that student and concept never share the memory."""
        unet, device = self.base.unet, self.base.unet.device
        predictor = copy.deepcopy(self.teacher.predictor)
        if predictor is not None:
            predictor.network.to(device)
        empty = self.base.text.empty()
        changes = TotalDifferences(self.teacher.weights, self._effective)
        taught = {
            name: (self._effective[name] + stored.value().to(device)).to(unet.dtype) for name, stored in changes.items()
        }
        with unet.using(taught):
            for indices in chunks(self._lessons(), self.micro_batch):
                sample = self._sample(indices)
                z = self._noisy(sample)
                if predictor is None:
                    words = self.teacher.embedding.to(device).expand(len(indices), -1, -1)
                else:
                    words = predictor.word(unet.features(z, sample.timesteps, empty.expand(len(indices), -1, -1)))
                contexts = self.base.text.encode([self.templates[number] for number in sample.templates], words)
                predicted = unet.denoise(z, sample.timesteps, contexts)
                for number, context, prediction in zip(indices, contexts, predicted, strict=True):
                    self._taught[number] = context.cpu(), prediction.cpu()
                on_pass()
        del taught
        untuned = {name: self._untuned(name).to(unet.dtype) for name in changes}
        moved = []
        with unet.using(untuned):
            # All of the schedule: what is moved differs by noise level.
            for indices in chunks(self.settings.batch, self.micro_batch):
                sample = self._sample(indices)
                contexts, wanted = self._lesson(sample)
                made = unet.denoise(self._noisy(sample), sample.timesteps, contexts)
                moved.append((made - wanted).square().mean(dim=(1, 2, 3)))
                on_pass()
        self._moved = max(float(torch.cat(moved).mean()), torch.finfo(torch.float32).tiny)

    def _sample(self, indices: range) -> DiffusionSample:
        return draw_samples(
            self.seed,
            indices,
            latent_shape=self.photos.latents.shape[1:],
            batch=self.settings.batch,
            photos=len(self.photos),
            templates=len(self.templates),
            timesteps=self.base.unet.schedule.timesteps,
        ).to(self.base.unet.device)

    def _noisy(self, sample: DiffusionSample) -> Tensor:
        latents = self.photos.latents[sample.photos]
        return self.base.unet.schedule.add_noise(latents, sample.noise, sample.timesteps)

    def _lesson(self, sample: DiffusionSample) -> tuple[Tensor, Tensor]:
        """The concept's contexts and predictions for samples, on the UNet's device."""
        contexts, predictions = zip(*(self._taught[number] for number in sample.numbers), strict=True)
        device = self.base.unet.device
        return torch.stack(contexts).to(device), torch.stack(predictions).to(device)

    def groups(self) -> list[dict[str, Any]]:
        return []

    def weights(self) -> Mapping[str, TrainedWeight]:
        def fixed(name: str) -> TrainedWeight:
            return TrainedWeight.fixed(
                lambda: self._untuned(name) + self._fixed[name].difference().to(self.base.unet.device)
            )

        return {name: part.trained() for name, part in self._students.items()} | {
            name: fixed(name) for name in self._fixed
        }

    def losses(self, sample: DiffusionSample) -> Tensor:
        contexts, wanted = self._lesson(sample)
        made = self.base.unet.denoise(self._noisy(sample), sample.timesteps, contexts)
        return (made - wanted).square().mean(dim=(1, 2, 3)) / self._moved

    def context(self, _z: Tensor, _t: Tensor) -> Tensor:
        return self.base.text.encode(self.templates[:1], self.teacher.embedding.to(self.base.unet.device)[None])

    def concept(self, on_pass: OnPass) -> Concept:
        """The same concept with small changes."""
        kept = [change for change in self.teacher.weights if isinstance(change, Scaled)]
        students: list[WeightChange] = [student.change(name) for name, student in self._students.items()]
        return dataclasses.replace(self.teacher, weights=(*kept, *students, *self._fixed.values()))


class _Student:
    """One weight ``start + up @ down``; its factors train in units of their own size.

    Args:
        part: how the difference is kept.
        difference: float32 on the CPU, of the weight's shape.
        start: the weight without it, where the factors are to live.
        gain: see ``quantized_factors``.
    """

    def __init__(self, part: Part, difference: Tensor, start: Tensor, gain: float) -> None:
        self._part, self._start = part, start.detach()
        rows = quantized_factors(difference.reshape(part.matrix), part.rank, part.bits, gain)
        # A component of nothing has no size.
        self._sizes = [max(float(one.values().square().mean().sqrt()), 1e-12) for one in rows]
        self._steps = [one.steps.to(start.device) for one in rows]
        # Of each factor: which state of it was rounded last, and to what. A step asks twice, once with gradients.
        self._kept: list[tuple[int, Tensor]] = [(-1, Tensor())] * len(rows)
        self.factors = tuple(
            nn.Parameter((one.values() / size).to(start.device)) for one, size in zip(rows, self._sizes, strict=True)
        )

    def _rounded(self) -> tuple[Tensor, Tensor]:
        """``up^T`` ``(R, M)`` and ``down`` ``(R, N)`` as they are kept, whose gradients are those of the factors."""
        found = []
        for number, (factor, size) in enumerate(zip(self.factors, self._sizes, strict=True)):
            rows = factor * size
            if self._kept[number][0] != factor._version:
                near = QuantizedRows.near(rows, self._steps[number], self._part.bits)
                self._steps[number], self._kept[number] = near.steps, (factor._version, near.values())
            found.append(rows + (self._kept[number][1] - rows).detach())
        return found[0], found[1]

    def trained(self) -> TrainedWeight:
        return TrainedWeight(self.factors, self._make)

    def _make(self) -> Tensor:
        up, down = self._rounded()
        return self._start.float() + (up.T @ down).reshape(self._part.shape)

    @torch.no_grad()
    def change(self, name: str) -> LowRank:
        up, down = self._rounded()
        return LowRank(name, up.T.cpu().contiguous(), down.cpu().contiguous(), self._part.shape)
