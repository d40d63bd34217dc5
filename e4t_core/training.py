"""THE training loop: a photo, or a few of one thing, becomes a concept, by whatever method.

A method says what trains, with which weights and contexts it looks at a sample, and what concept comes out
(:class:`Method`, :class:`Run`); it never writes a loop. The loop owns samples and seeds, micro-batches, the optimizer,
reports, cancelling, and what happens when a loss runs away.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from .concept import Concept
from .diffusion import DiffusionSample, draw_samples
from .loop_settings import LoopSettings
from .memory_plan import FAST, RAM, MemoryPlan
from .optimizer import are_finite, make_optimizer, set_rate, undo_step
from .photos import Photos, TuningError
from .preview import draw
from .recipe import Recipe
from .run import BaseModel, Method, OnPass, OnStep, Phase, Run, StepReport
from .working_weights import WorkingWeights

logger = logging.getLogger(__name__)

# A loss is about 1 where a network predicts nothing at all. A run whose loss is above that, and this many times its
# first loss, is lost: no photo does that.
RUNAWAY = 4.0
# In float16 the loss is multiplied by this, so that no gradient is rounded to zero, and by less where one overflows.
LOSS_SCALE, SCALE_DOWN, SCALINGS = 2.0**16, 4.0, 5


def train(
    method: Method,
    base: BaseModel,
    photos: Photos,
    settings: LoopSettings,
    seed: int,
    trigger: str = "S*",
    on_step: OnStep | None = None,
    plan: MemoryPlan = FAST,
) -> Concept:
    """Learn a concept.

    ``base``, ``photos`` and the method are never changed, whatever happens. It may be called inside
    ``torch.inference_mode()``, which it leaves for its own work. On a CPU, equal inputs, plan and seed give the same
    concept bit for bit; another plan changes it by accumulation order only.

    Args:
        method: see :class:`Method`.
        base: the base as it stands, without concepts.
        photos: what is to be learned; moved to the UNet's device.
        settings: the method's own; 0 steps leave its first answer.
        seed: of noise, timesteps and templates.
        trigger: what the concept is called in prompts.
        on_step: called after every micro-batch; whatever it raises ends the run and passes through.
        plan: how memory is used; its micro-batch goes before the settings'.

    Raises:
        TuningError: the photos do not fit the method, or the loss is not finite from the start.
        ValueError: what the method's ``start`` raises.
    """
    settings = settings.for_photos(len(photos))
    plan = dataclasses.replace(plan, micro_batch=plan.micro_batch or settings.micro_batch).within(settings.batch)
    with torch.inference_mode(False), torch.enable_grad():
        run = method.start(base, photos, settings, seed, trigger, plan)
        concept = _Loop(run, settings, plan, on_step).go()
        return dataclasses.replace(concept, recipe=Recipe(photos.for_training(settings, RAM), plan))


class _Loop:
    """The state of one run's loop."""

    def __init__(self, run: Run, settings: LoopSettings, plan: MemoryPlan, on_step: OnStep | None) -> None:
        self.run, self.settings, self.plan, self.on_step = run, settings, plan, on_step
        self.micros = math.ceil(settings.batch / plan.micro_batch)
        self.passes = run.passes()
        self.total = settings.steps * self.micros + sum(self.passes.values())
        self.done = 0
        self.losses: list[float] = []
        self.notes: list[str] = []
        self.repeated = 0
        unet = run.base.unet
        self.scale = LOSS_SCALE if unet.dtype == torch.float16 else 1.0
        self.working = WorkingWeights(run.weights(), settings, plan, unet.device, unet.dtype)
        # A scaled loss may overflow, and is then tried again: no weight may have changed by then.
        self.steps_in_backward = self.micros == 1 and self.scale == 1.0

    def go(self) -> Concept:
        with torch.no_grad(), self._lent():
            self.run.prepare(self._counted("subject"))
        if self.settings.steps > 0:
            self._train()
        self.working.end()
        with torch.no_grad(), self._lent():
            concept = self.run.concept(self._counted("word"))
        if self.repeated:
            self.notes.append(
                f"Gradients overflowed float16, so steps were made again {self.repeated} times with a smaller loss scale;"
                " nothing was lost."
            )
        losses, notes = tuple(self.losses), tuple(self.notes)
        return dataclasses.replace(concept, losses=losses, notes=(*concept.notes, *notes))

    def _lent(self) -> AbstractContextManager[object]:
        return self.run.base.unet.using(self.working.tensors, self.plan.checkpointing)

    def _train(self) -> None:
        settings = self.settings
        if self.steps_in_backward:
            self.working.step_in_backward()
        groups = self.run.groups()
        fused = self.run.base.unet.device.type == "cuda"
        optimizer = make_optimizer(groups, settings, fused) if groups else None
        for step in range(settings.steps):
            self.working.set_rate(settings.rate(step))
            if optimizer is not None:
                set_rate(optimizer, settings.rate(step))
            loss, finite = self._gradients(step, optimizer)
            if not self._is_sound(loss):
                self._take_back(optimizer, step, loss)
                return
            if not finite:
                what = f"The gradients became NaN or infinite in step {step + 1} of {settings.steps}"
                if not self.losses:
                    raise TuningError(f"{what}: {self._advice()}.")
                self.working.undo(step + 1)
                self._stop(what)
                return
            self.working.step(self.scale)
            if optimizer is not None:
                for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                    if parameter.grad is not None and self.scale != 1.0:
                        parameter.grad.div_(self.scale)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.losses.append(loss)
            self._report("tuning", step + 1, self.micros, self.micros, self._draw)
        if not self._is_sound(loss := self._loss_now(), room=2.0):
            self._take_back(optimizer, settings.steps, loss)
        if self.losses:
            logger.info("Tuned %d steps: loss %.4f -> %.4f.", len(self.losses), self.losses[0], self.losses[-1])

    def _gradients(self, step: int, optimizer: torch.optim.AdamW | None) -> tuple[float, bool]:
        """All gradients of a step; its loss, and whether they are finite.

        Raises:
            TuningError: they overflow float16 however little the loss is scaled.
        """
        where = f"in step {step + 1} of {self.settings.steps}"
        for _ in range(SCALINGS):
            loss = self._backward(step)
            finite = not self._is_sound(loss) or self._are_finite(optimizer)
            if finite or self.scale == 1.0:
                return loss, finite
            self.working.forget_gradients()
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
            self.scale /= SCALE_DOWN
            logger.info("Gradients overflowed float16 %s; again with a loss scale of %g.", where, self.scale)
            self.repeated += 1
            # What was reported of this try is reported again.
            self.done -= self.micros - 1
        raise TuningError(
            f"The gradients overflowed float16 {SCALINGS} times in a row {where}, the last time at a loss scale of"
            f" {self.scale * SCALE_DOWN:g}: start ComfyUI with --force-fp32, or lower the learning rate"
            f" ({self.settings.learning_rate:g})."
        )

    def _are_finite(self, optimizer: torch.optim.AdamW | None) -> bool:
        waiting = self.working.gradients()
        if optimizer is not None:
            waiting += [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        return are_finite(waiting) and not self.working.skipped()

    def _backward(self, step: int) -> float:
        """The gradients of a step's batch, all micro-batches added up; returns its loss."""
        total = torch.zeros((), device=self.run.base.unet.device)
        for micro, indices in enumerate(chunks(self.settings.batch, self.plan.micro_batch)):
            sample = self._samples(step, indices)
            with self._lent():
                # Weighted by its share of the batch, so that all micro-batch sizes give the batch's gradient.
                loss = self.run.losses(sample).mean() * (len(indices) / self.settings.batch)
                total += loss.detach()
                if self.steps_in_backward and not self._is_sound(float(total)):
                    break
                (loss * self.scale).backward()
            if micro + 1 < self.micros:
                self._report("tuning", step + 1, micro + 1, self.micros)
        return float(total)

    def _samples(self, step: int, indices: Sequence[int]) -> DiffusionSample:
        settings, latents = self.settings, self.run.photos.latents
        start = step * settings.batch
        sample = draw_samples(
            self.run.seed,
            [start + index for index in indices],
            latent_shape=latents.shape[1:],
            batch=settings.batch,
            photos=len(self.run.photos),
            templates=len(self.run.templates),
            timesteps=self.run.base.unet.schedule.timesteps,
            level=settings.level,
        )
        return sample.to(latents.device)

    @torch.no_grad()
    def _loss_now(self) -> float:
        """The loss after the last step, on one micro-batch of the next one that is spread over the schedule."""
        batch = self.settings.batch
        indices = range(0, batch, self.micros)[: self.plan.micro_batch]
        with self._lent():
            return float(self.run.losses(self._samples(self.settings.steps, indices)).mean())

    def _is_sound(self, loss: float, room: float = 1.0) -> bool:
        if not self.losses:
            return math.isfinite(loss)
        return math.isfinite(loss) and loss <= room * max(RUNAWAY * self.losses[0], 1.0)

    def _take_back(self, optimizer: torch.optim.AdamW | None, step: int, loss: float) -> None:
        """End the run where the loss has run away after ``step`` steps: the last of them made it, and is taken back."""
        total = self.settings.steps
        if not self.losses:
            raise TuningError(f"The loss became {loss} in step 1 of {total}: {self._advice()}.")
        what = f"The loss ran away in step {step} of {total} ({self.losses[0]:.3g} -> {loss:.3g})"
        finite = self.working.undo(step)
        if optimizer is not None:
            undo_step(optimizer)
            finite &= all(bool(torch.isfinite(p).all()) for group in optimizer.param_groups for p in group["params"])
        self.losses.pop()
        if not finite:
            raise TuningError(f"{what} and left NaN behind: {self._advice()}.")
        self._stop(what)

    def _stop(self, what: str) -> None:
        """Say why a run ends early, and what is kept of it."""
        kept = len(self.losses)
        result = f"the result of step {kept} is kept" if kept else "nothing was learned"
        self.notes.append(f"{what}, so {result}: {self._advice()}.")
        logger.warning(self.notes[-1])

    def _advice(self) -> str:
        rate = self.settings.learning_rate
        return f"lower the learning rate ({rate:g}), or run the base model in a wider float type"

    def _counted(self, phase: Phase) -> OnPass:
        """A method's ``on_pass`` that reports one pass more of a phase."""
        made = 0

        def on_pass() -> None:
            nonlocal made
            made += 1
            self._report(phase, 0 if phase == "subject" else self.settings.steps, made, self.passes.get(phase, 0))

        return on_pass

    @torch.no_grad()
    def _draw(self) -> Tensor:
        with self._lent():
            return draw(self.run)

    def _report(
        self, phase: Phase, step: int, micro: int, micros: int, draw: Callable[[], Tensor] | None = None
    ) -> None:
        self.done += 1
        if self.on_step is not None:
            losses, masks, notes = tuple(self.losses), self.run.photos.masks, (*self.run.notes, *self.notes)
            steps = self.settings.steps
            where = (phase, step, steps, micro, micros, self.done, self.total)
            self.on_step(StepReport(*where, losses, masks, notes, draw))


def chunks(count: int, size: int) -> Iterator[range]:
    """``range(count)`` in pieces of ``size``, the last one maybe smaller."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
