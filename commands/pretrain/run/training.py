"""The training loop (the paper's section 3.3), on one process or many, on accelerate.

Every process takes its share of each batch; DistributedDataParallel averages the gradients. A sample's picture, noise,
timestep and template follow from (seed, global sample index), so P processes with batch B each do what one does with P·B,
and a resumed run does what an uninterrupted one does.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from commands.base.networks import open_backbone, open_base
from commands.pretrain.config.changed_settings import changes_between
from commands.pretrain.config.config_file import to_dict
from commands.pretrain.config.sections import Config
from commands.pretrain.data.configured_sources import open_data
from commands.pretrain.data.corruption import CorruptionCount
from commands.pretrain.data.micro_batches import make_loader, micro_batches
from e4t_core.fingerprint import fingerprint

from .checkpoint_tensors import restore_tensors, state_tensors
from .checkpoints import Checkpoint, Checkpoints
from .domain_file import write_domain
from .encoder_and_offsets import EncoderAndOffsets
from .errors import Stopped, TrainingError
from .extractor import Extractor
from .feature_cache import FeatureCache
from .inputs import Inputs, cached_inputs, live_inputs
from .journal import Journal
from .previews import Previews
from .processes import check_alike, open_accelerator
from .stop_signals import stop_signals
from .weight_average import WeightAverage

log = logging.getLogger(__name__)
DRY_STEPS = 3
TERMS = ("diffusion", "word offset")


class Training:
    """One run, on one of its processes.

    Args:
        config: of the run.
        accept_changes: go on from a checkpoint although settings that decide the result are others than its own.
        dry: do ``DRY_STEPS`` steps, write nothing.

    Raises:
        TrainingError, CheckpointError, DataError, BaseModelError, BackboneError, WordError: it cannot start; one
            sentence says why.
    """

    def __init__(self, config: Config, accept_changes: bool = False, dry: bool = False) -> None:
        self.config, self.dry = config, dry
        training = config.training
        self.accelerator = open_accelerator(training.precision)
        self.device = self.accelerator.device
        self.data = open_data(config)
        self.corruption = CorruptionCount(self.data.rows, config.data.most_corrupt)
        self._described_data = f"{self.data.rows} pictures, {self.data.probe()}"
        base = open_base(config.base, training.precision, training.gradient_checkpointing, self.device)
        backbone = open_backbone(config.backbone, training.precision, self.device)
        self.extractor = Extractor(base, backbone, self.device)
        info = backbone.info
        self.encoder_and_offsets = EncoderAndOffsets(config, base, info.vectors, info.width, self.device)
        self.average = WeightAverage(self.encoder_and_offsets, training.ema)
        self.parameters = {n: p for n, p in self.encoder_and_offsets.named_parameters() if p.requires_grad}
        groups = {"encoder.": 1.0, "offsets.": training.offset_rate}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for n, p in self.parameters.items() if n.startswith(part)], "factor": factor}
                for part, factor in groups.items()
            ],
            lr=training.learning_rate,
            betas=(training.betas[0], training.betas[1]),
            eps=training.eps,
            weight_decay=training.weight_decay,
        )
        self._described_networks = {
            "base": fingerprint({**base.unet.parameters()} | base.vae.network.state_dict(prefix="vae.")),
            "backbone": backbone.info.sha256 or fingerprint(backbone.tower.state_dict()),
        }
        self.step = 0
        self.folder = Path(config.output.folder)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.output.keep_checkpoints)
        if not dry:
            self._resume(accept_changes)
            check_alike(gather_object([f"step {self.step}, data {self._described_data}, {self._described_networks}"]))
        self._say_word()
        self.module, self.stepper = self.accelerator.prepare(self.encoder_and_offsets, self.optimizer)
        self._asked_to_stop = False

    def _say_word(self) -> None:
        """How long the domain word's embedding is, because s is to be seen beside it."""
        domain, length = self.config.domain, self.encoder_and_offsets.word_length
        if self.accelerator.is_main_process:
            share = domain.scale / length
            log.info(
                "The embedding of %r is %.3f long; domain.scale = %g is %.2f of that (the paper's: about 0.26).",
                domain.word, length, domain.scale, share,
            )  # fmt: skip

    @property
    def last_step(self) -> int:
        """At which the run ends."""
        return DRY_STEPS if self.dry else self.config.training.steps

    def run(self) -> Path | None:
        """Train to the end.

        Returns:
            The domain file; None of a dry run, and on processes other than the first.

        Raises:
            Stopped: by Ctrl-C, after a checkpoint.
            TrainingError: the loss or a weight is not finite.
            DataError: too many samples are corrupt.
            CheckpointError: a checkpoint could not be written.
        """
        first, output = self.accelerator.is_main_process, self.config.output
        writes = first and not self.dry
        journal = Journal(self.folder, self.last_step, self.step, output.tensorboard) if writes else None
        previews = Previews(self.config, self.data, self.extractor) if writes and output.preview_every else None
        inputs = self._inputs()
        window: list[Tensor] = []
        since, started = time.perf_counter(), self.step
        try:
            with stop_signals(self._stop):
                while self.step < self.last_step:
                    figures = self._one_step(inputs)
                    self.step += 1
                    window.append(figures)
                    if journal:
                        journal.advance()
                    stop = bool(figures[-1] > 0)
                    every = self.step == self.last_step or stop
                    if every or self.step % output.log_every == 0:
                        self._share_corruption()
                        seconds = (time.perf_counter() - since) / (self.step - started)
                        if journal:
                            journal.write(self.step, self._figures(window, seconds))
                        elif self.dry and first:
                            self._say_dry(self._figures(window, seconds), seconds)
                        window, since, started = [], time.perf_counter(), self.step
                    if not self.dry and (every or self.step % output.checkpoint_every == 0):
                        self.save()
                    if previews and (self.step == self.last_step or self.step % output.preview_every == 0):
                        self._preview(previews)
                        since, started = time.perf_counter(), self.step
                    if stop and self.step < self.last_step:
                        where = f"the checkpoint is in {self.checkpoints.folder}: the same command goes on from there"
                        kept = "a dry run writes nothing" if self.dry else where
                        raise Stopped(f"Stopped after step {self.step} of {self.last_step}; {kept}.")
        finally:
            if journal:
                journal.close()
        path = self.write_domain() if writes else None
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return path

    def write_domain(self) -> Path:
        """Write the domain file of what is trained so far (its average, if there is one)."""
        with self.average.used_by(self.encoder_and_offsets):
            return write_domain(self.config, self.extractor, self.encoder_and_offsets, self.step)

    def _inputs(self) -> Iterator[Inputs]:
        """This process's micro-batches from the next step on."""
        config, accelerator = self.config, self.accelerator
        training, process, processes = config.training, accelerator.process_index, accelerator.num_processes
        batches = micro_batches(self.step, self.last_step, training.batch, training.micro_batch, process, processes)
        if not config.data.cache_features or self.dry:
            pin = self.device.type == "cuda"
            settings = config.data
            loader = make_loader(self.data, batches, settings.workers, settings.prefetch, pin, training.use_mask)
            return live_inputs(loader, self.extractor)
        folder = Path(config.data.cache_folder or self.folder / "features")
        # Made by the first process, then opened by the others: none may find a file half as long.
        with accelerator.main_process_first():
            cache = FeatureCache(folder, self.data.rows, self.extractor.key(config, self.data), training.use_mask)
        cache.fill(self.data, self.extractor, training.micro_batch, process, processes, self.corruption.add)
        self._share_corruption()
        accelerator.wait_for_everyone()
        cache.check_whole()
        return cached_inputs(cache, self.data, batches, self.device)

    def _one_step(self, inputs: Iterator[Inputs]) -> Tensor:
        """One optimizer step; means over the whole batch: loss, its terms, gradient length, and who asks to stop."""
        training, accelerator = self.config.training, self.accelerator
        share = training.batch // accelerator.num_processes
        micros = math.ceil(share / training.micro_batch)
        rate = training.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        sums = torch.zeros(2, device=self.device)
        for micro in range(micros):
            batch = next(inputs)
            self.corruption.add(batch.corrupt)
            self._seen = batch.clip_features
            apart = accelerator.no_sync(self.module) if micro + 1 < micros else nullcontext()
            with apart, self.encoder_and_offsets.lending():
                diffusion, offset = self.module(batch)
                weight = len(batch.indices) / share
                loss = (diffusion.float().mean() + training.regularization * offset.float().mean()) * weight
                accelerator.backward(loss)
            sums += torch.stack([diffusion.detach().float().sum(), offset.detach().float().sum()]) / share
        if training.clip:
            length = accelerator.clip_grad_norm_(self.parameters.values(), training.clip)
        else:
            length = torch.zeros(())
        stop = torch.tensor([float(self._asked_to_stop)], device=self.device)
        figures = accelerator.reduce(torch.cat([sums, length.detach().view(1).to(sums), stop]), "mean").cpu()
        for name, value in zip(TERMS, figures.tolist(), strict=False):
            if not math.isfinite(value):
                raise self._diverged(self.step + 1, f"the term {name!r} of the loss became {value}")
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        self.average.update(self.encoder_and_offsets, self.step + 1)
        return figures

    def _figures(self, window: list[Tensor], seconds: float) -> dict[str, float]:
        """What is logged of an interval, by name."""
        diffusion, offset, length, _ = torch.stack(window).mean(0).tolist()
        training, domain = self.config.training, self.config.domain
        figures = {
            "loss": diffusion + training.regularization * offset,
            "diffusion": diffusion,
            "λ term": training.regularization * offset,
            "word offset": offset**0.5,
            "word offset / word": domain.scale * offset**0.5 / self.encoder_and_offsets.word_length,
            "weight offset rms": self.encoder_and_offsets.offset_rms(self._seen),
            "learning rate": training.rate(self.step - 1),
            "seconds per step": seconds,
            "images per second": training.batch / seconds,
            "corrupt samples": float(len(self.corruption.found)),
        }
        return figures | ({"gradient length": length} if training.clip else {})

    def _say_dry(self, figures: Mapping[str, float], seconds: float) -> None:
        for name, value in figures.items():
            log.info("%-20s %.6g", name, value)
        steps = self.config.training.steps
        log.info("%d steps at this speed: %.1f hours", steps, seconds * steps / 3600)
        if self.device.type == "cuda":
            log.info("peak GPU memory: %.2f GB", torch.cuda.max_memory_allocated() / 1e9)

    def _share_corruption(self) -> None:
        """All processes know what each of them found, so that all stop together if it is too much."""
        if self.accelerator.num_processes > 1:
            self.corruption.add(gather_object(list(self.corruption.found.items())))

    def _preview(self, previews: Previews) -> None:
        with self.average.used_by(self.encoder_and_offsets), self.accelerator.autocast():
            previews.draw(self.encoder_and_offsets, self.folder / "previews" / f"step-{self.step:08d}.png")

    def save(self) -> None:
        """Write a checkpoint; the processes wait for it.

        Raises:
            TrainingError: a weight is not finite.
            CheckpointError: it could not be written.
        """
        bad = next((name for name, value in self.parameters.items() if not torch.isfinite(value).all()), None)
        if bad:
            raise self._diverged(self.step, f"{bad} became NaN or infinite")
        if self.accelerator.is_main_process:
            tensors = state_tensors(self.parameters, self.average, self.optimizer)
            self.checkpoints.save(self.step, tensors, self._record())
        self.accelerator.wait_for_everyone()

    def _record(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "config": json.loads(json.dumps(to_dict(self.config))),
            "corrupt": self.corruption.state_dict(),
            "data": self._described_data,
            "networks": self._described_networks,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def _resume(self, accept_changes: bool) -> None:
        found = self.checkpoints.load()
        if found is None:
            return
        changes = changes_between(found.record["config"], json.loads(json.dumps(to_dict(self.config))))
        data = found.record.get("data", self._described_data)  # older checkpoints do not say
        if data != self._described_data:
            changes.append(f"the data was {data} and is {self._described_data}")
        for name, before in found.record.get("networks", {}).items():
            if before != self._described_networks[name]:
                changes.append(f"the {name} has other weights than before")
        if changes and not accept_changes:
            raise TrainingError(
                f"{self.checkpoints.folder} holds a run with other settings or data ({'; '.join(changes)}): set them back, choose"
                " another output.folder, or give --accept-changes to go on with the new ones."
            )
        for change in changes:
            log.warning("Going on with another setting: %s", change)
        self._restore(found)
        if self.step > self.last_step:
            raise TrainingError(
                f"{self.checkpoints.folder} holds a checkpoint of step {self.step}, beyond training.steps ="
                f" {self.last_step}: raise it, or choose another output.folder."
            )
        if self.accelerator.is_main_process:
            log.info("Going on after step %d of %d.", self.step, self.last_step)

    def _restore(self, checkpoint: Checkpoint) -> None:
        restore_tensors(checkpoint, self.parameters, self.average, self.optimizer)
        self.corruption.load_state_dict(checkpoint.record["corrupt"])
        if self.accelerator.scaler is not None and checkpoint.record["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.record["scaler"])
        self.step = checkpoint.step

    def _diverged(self, step: int, what: str) -> TrainingError:
        steps = self.checkpoints.steps()
        kept = f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"
        rate = self.config.training.rate(step - 1)
        return TrainingError(
            f"In step {step} of {self.last_step} {what}; {kept}: lower training.learning_rate_per_sample (the rate was"
            f" {rate:g}), set training.clip, or use a wider training.precision."
        )

    def _stop(self) -> None:
        if self.accelerator.is_main_process:
            log.warning("Asked to stop: finishing the step, then saving. Ask again to stop at once.")
        self._asked_to_stop = True
