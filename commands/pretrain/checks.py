"""What can be known before a run starts: everything that is wrong with it, and what it will take."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from commands.base.factories import FactoryError
from commands.base.networks import Base, open_backbone, open_base
from commands.base.single_file import BaseModelError
from commands.progress import Progress
from e4t_core.methods.e4t.clip_backbone import BackboneError, ClipBackbone
from e4t_core.unet import WordError

from .config.sections import Config
from .data.configured_sources import open_data
from .data.pictures import CorruptSample, DataError
from .data.training_data import TrainingData
from .disk_room import lacking_room, unusable_places
from .estimate import META, Estimate, estimate

log = logging.getLogger(__name__)
PROBES = 32


@dataclass(eq=False)
class Findings:
    """Attributes:
    problems: sentences; empty if the run can start.
    notes: what was found.
    estimate: if base and backbone are right.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    estimate: Estimate | None = None


def validate(config: Config, processes: int = 1) -> Findings:
    """Everything that can be known before a run of ``processes`` processes starts."""
    findings = Findings()
    if config.training.batch % processes:
        findings.problems.append(
            f"training.batch = {config.training.batch} cannot be shared evenly by {processes} processes: make it a"
            " multiple."
        )
    rows = 0
    try:
        data = open_data(config)
        rows = data.rows
        _check_data(config, data, findings)
    except (DataError, FactoryError, OSError) as error:
        findings.problems.append(str(error))
    base = _outline_base(config, findings)
    backbone = _outline_backbone(config, findings)
    unusable = unusable_places(config)
    findings.problems += unusable
    if base and _prompts_fit(config, base, findings) and backbone:
        findings.estimate = estimate(config, base, backbone)
        if config.data.cache_features:
            findings.notes.append(f"cache of features: {findings.estimate.cached_row * rows / 1e9:.2f} GB")
        if not unusable:
            findings.problems += lacking_room(config, findings.estimate, rows)
    return findings


def _outline_base(config: Config, findings: Findings) -> Base | None:
    try:
        return open_base(config.base, config.training.precision, config.training.gradient_checkpointing, META)
    except (BaseModelError, FactoryError, OSError) as error:
        findings.problems.append(str(error))
        return None


def _outline_backbone(config: Config, findings: Findings) -> ClipBackbone | None:
    try:
        return open_backbone(config.backbone, config.training.precision, META)
    except (BackboneError, FactoryError, OSError) as error:
        findings.problems.append(str(error))
        return None


def _prompts_fit(config: Config, base: Base, findings: Findings) -> bool:
    """The domain word is one token of the base's text encoder, and the prompts of previews fit into it."""
    try:
        embedding = base.text.word(config.domain.word)[None]
        for prompt in config.output.preview_prompts if config.output.preview_every else ():
            base.text.encode([prompt], embedding)
    except (WordError, ValueError) as error:
        findings.problems.append(str(error))
        return False
    return True


def _check_data(config: Config, data: TrainingData, findings: Findings) -> None:
    epochs = config.training.steps * config.training.batch / data.rows
    findings.notes.append(f"data: {data.rows:,} pictures in {len(data.sources)} source(s), {epochs:.2f} epochs")
    probes = sorted({number * data.rows // PROBES for number in range(PROBES)})
    corrupt, small = [], 0
    for row in Progress(probes, desc="reading some pictures", leave=False):
        try:
            picture = data.read_row(row)
        except CorruptSample as error:
            corrupt.append(str(error))
            continue
        except ValueError as error:
            findings.problems.append(str(error))
            return
        small += data.is_enlarged(row)
        if config.training.use_mask and picture.mask is None:
            findings.problems.append(
                "training.use_mask is true, but the data has no masks: set it to false, or set alpha_mask of sources whose"
                " pictures have an alpha channel."
            )
            return
    findings.notes.append(f"data: {len(probes)} pictures read, {len(corrupt)} corrupt")
    if small:
        findings.notes.append(
            f"data: {small} of these pictures are smaller than domain.image_size = {config.domain.image_size} and are enlarged:"
            " a domain of blurred pictures draws blurred ones"
        )
    if len(corrupt) > max(1, config.data.most_corrupt * len(probes)):
        findings.problems.append(
            f"{len(corrupt)} of {len(probes)} pictures that were read are corrupt, the first is {corrupt[0]}: prepare the"
            " data again."
        )


def report(findings: Findings, config: Config, speed: float, basis: str, processes: int) -> list[str]:
    """What the command prints."""
    training = config.training
    lines = [
        *findings.notes,
        f"learning rate: {training.learning_rate_per_sample:g} × batch {training.batch} = {training.learning_rate:g}",
    ]
    if findings.estimate:
        found = findings.estimate
        hours = found.seconds(speed, processes) / 3600
        lines.append(f"parameters: {', '.join(f'{name} {count:,}' for name, count in found.networks.items())}")
        lines.append("memory per process (estimated, without allocator and driver):")
        lines += [f"  {size / 1e9:7.2f} GB  {what}" for what, size in found.memory.items() if size]
        lines.append(f"  {sum(found.memory.values()) / 1e9:7.2f} GB  together")
        lines.append(f"disk: {found.checkpoint / 1e9:.2f} GB per checkpoint")
        lines.append("operations per sample (counted; forward, where nothing else is said):")
        lines += [f"  {count / 1e9:9,.1f} GFLOP  {what}" for what, count in found.operations.items() if count]
        lines.append(f"time: {hours:.1f} hours for {found.samples:,} samples on {processes} process(es), at {basis}")
    return lines
