"""The training loop that every model of the mini world shares: seeded, resumable, with progress and a loss log."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from commands.progress import Progress
from e4t_core.files.whole_file import replacing

log = logging.getLogger(__name__)
Loss = tuple[Tensor, Mapping[str, float]]
Trained = TypeVar("Trained", bound=nn.Module)


@dataclass(frozen=True)
class Schedule:
    """Attributes:
    steps: optimizer steps in all; raising it continues a finished run.
    learning_rate: after ``warmup`` steps, until ``decay`` (a share of ``steps``) from the end, then linearly to 0.
    ema: decay of the averaged weights, 0 for none.
    """

    steps: int
    learning_rate: float
    warmup: int = 100
    decay: float = 0.25
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    ema: float = 0.0
    checkpoint_every: int = 250

    def rate(self, step: int) -> float:
        ending = max(1, int(self.steps * self.decay))
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup), max(0.0, (self.steps - step) / ending))


class Run(Generic[Trained]):
    """One model in training under ``folder``; ``model`` holds the averaged weights after ``finish``."""

    def __init__(self, folder: Path, model: Trained, schedule: Schedule, autocast: bool = True) -> None:
        self.folder, self.model, self.schedule = folder, model, schedule
        folder.mkdir(parents=True, exist_ok=True)
        self.device = next(model.parameters()).device
        decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=schedule.learning_rate, betas=schedule.betas, weight_decay=schedule.weight_decay, fused=True
        )
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()} if schedule.ema else None
        self.step = 0
        self.autocast = autocast
        self._path = folder / "checkpoint.pt"
        if self._path.exists():
            saved = torch.load(self._path, map_location=self.device, weights_only=True)
            model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.average, self.step = saved["average"], saved["step"]
            log.info("%s: resuming at step %d", folder, self.step)

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
        }
        with replacing(self._path) as part:
            torch.save(state, part)

    def train(self, loss: Callable[[int], Loss], on_checkpoint: Callable[[int], None] | None = None) -> None:
        """Runs ``loss(step)`` -> (scalar, parts to log) until ``schedule.steps``; checkpoints and logs on the way."""
        started, window = time.monotonic(), []
        with (
            open(self.folder / "log.jsonl", "a") as file,
            Progress(total=self.schedule.steps, initial=self.step, desc=self.folder.name, mininterval=5) as bar,
        ):
            while self.step < self.schedule.steps:
                for group in self.optimizer.param_groups:
                    group["lr"] = self.schedule.rate(self.step)
                context = torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext()
                with context:
                    value, parts = loss(self.step)
                value.backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.clip)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.step += 1
                if self.average is not None:
                    # A young average would be mostly the random start: let its horizon grow with the run.
                    weight = 1 - min(self.schedule.ema, self.step / (self.step + 10))
                    for key, entry in self.model.state_dict().items():
                        if entry.is_floating_point():
                            self.average[key].lerp_(entry.to(self.average[key].dtype), weight)
                window.append({"loss": float(value.detach()), **parts})
                bar.update()
                if self.step % 50 == 0:
                    mean = {k: sum(w[k] for w in window) / len(window) for k in window[-1]}
                    seconds = (time.monotonic() - started) / len(window)
                    record = {"step": self.step, "rate": self.schedule.rate(self.step), "seconds": seconds, **mean}
                    file.write(json.dumps({k: round(v, 6) for k, v in record.items()}) + "\n")
                    file.flush()
                    bar.set_postfix({k: f"{v:.4f}" for k, v in mean.items()})
                    started, window = time.monotonic(), []
                if self.step % self.schedule.checkpoint_every == 0 or self.step == self.schedule.steps:
                    self.save()
                    if on_checkpoint is not None:
                        on_checkpoint(self.step)

    def finish(self) -> Trained:
        """The model with its averaged weights."""
        if self.average is not None:
            self.model.load_state_dict(self.average)
        return self.model.eval()
