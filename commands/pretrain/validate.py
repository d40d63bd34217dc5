"""``python -m commands.pretrain.validate --config CONFIG [section.key=value …]``: is a run fit to start, and what will it take?

Checks the config, the data (each source is opened, some pictures are read), base and backbone (files and their headers)
and the room for checkpoints; lists everything that is wrong; estimates memory and time. Nothing is trained or loaded
onto a GPU; weights are read only for kinds named "python".
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from commands.base.counts import PROMPT_LENGTH
from commands.base.factories import FactoryError, from_factory
from commands.base.header import HeaderError
from commands.base.model_files import BackboneCounts, BaseCounts, check_backbone, check_base
from commands.base.setting_rules import ConfigError
from commands.pretrain.data.configured_sources import open_data
from commands.progress import Progress
from e4t_core.methods.e4t.clip_backbone import BackboneError
from e4t_core.unet import WordError

from .config.config_file import load_config
from .config.sections import Config
from .data.pictures import CorruptSample, DataError
from .data.training_data import TrainingData
from .estimate import Estimate, estimate, measured_speed

log = logging.getLogger(__name__)
PROBES = 32


@dataclass(eq=False)
class Findings:
    """Attributes:
    problems: sentences; empty if the run can start.
    notes: what was found.
    base, backbone: counts, if their files are right.
    estimate: if both are.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    base: BaseCounts | None = None
    backbone: BackboneCounts | None = None
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
    try:
        findings.base = check_base(config.base, config.domain.image_size)
    except (HeaderError, FactoryError, OSError) as error:
        findings.problems.append(str(error))
    try:
        findings.backbone = check_backbone(config.backbone)
    except (BackboneError, HeaderError, FactoryError, OSError) as error:
        findings.problems.append(str(error))
    if findings.base:
        try:
            _check_word(config)
        except (WordError, OSError, ValueError) as error:
            findings.problems.append(str(error))
    if findings.base and findings.backbone:
        findings.estimate = estimate(config, findings.base, findings.backbone)
        _check_room(config, findings.estimate, rows, findings)
    return findings


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


def _check_word(config: Config) -> None:
    """The domain word is one token of the base's text encoder, and the prompts of previews fit into it.

    The vocabulary tells it, without the weights.
    """
    base, word = config.base, config.domain.word
    prompts = config.output.preview_prompts if config.output.preview_every else ()
    if base.kind == "python":
        text = from_factory(base.factory)().text
        embedding = text.word(word)[None]
        for prompt in prompts:
            text.encode([prompt], embedding)
        return
    from transformers import CLIPTokenizer

    from commands.base.clip_text import bundled_tokenizer, check_length, only_token

    own = Path(base.path) / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(own) if own.is_dir() else bundled_tokenizer(base.family)
    only_token(tokenizer, word)
    for prompt in prompts:
        check_length(tokenizer, prompt, PROMPT_LENGTH)


def _check_room(config: Config, needed: Estimate, rows: int, findings: Findings) -> None:
    """The disk has room for checkpoints and the cache, less what an earlier start of the same run has made."""
    output, data = config.output, config.data
    folder = Path(output.folder)
    if folder.exists() and not folder.is_dir():
        findings.problems.append(f"output.folder = {folder} is a file: choose another name.")
        return
    # One more than are kept: a new one is written before the oldest goes.
    made = _size_of(folder / "checkpoints")
    rooms = [
        ("output.folder", folder, max(needed.checkpoint * (output.keep_checkpoints + 1) - made, needed.checkpoint))
    ]
    if data.cache_features:
        cache = Path(data.cache_folder or folder / "features")
        rooms.append(("data.cache_folder", cache, max(needed.cached_row * rows - _size_of(cache), 0)))
        findings.notes.append(f"cache of features: {needed.cached_row * rows / 1e9:.2f} GB")
    together: dict[int, int] = {}
    for setting, path, room in rooms:
        place = next((parent for parent in (path, *path.resolve().parents) if parent.is_dir()), None)
        if place is None or not os.access(place, os.W_OK):
            findings.problems.append(f"{setting} = {path} cannot be made or written to: choose another one.")
            continue
        disk = place.stat().st_dev
        together[disk] = together.get(disk, 0) + room
        free = shutil.disk_usage(place).free
        if free < together[disk]:
            findings.problems.append(
                f"{setting} = {path} has {free / 1e9:.1f} GB free, but checkpoints and cached features there need"
                f" {together[disk] / 1e9:.1f} GB: free some, lower output.keep_checkpoints, or set data.cache_features to"
                " false."
            )


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def report(findings: Findings, config: Config, speed: float, basis: str, processes: int) -> list[str]:
    """What the command prints."""
    training = config.training
    lines = [
        *findings.notes,
        f"learning rate: {training.learning_rate_per_sample:g} × batch {training.batch} = {training.learning_rate:g}",
    ]
    if findings.base and findings.backbone and findings.estimate:
        found, base, backbone = findings.estimate, findings.base, findings.backbone
        unet, hours = base.unet, found.seconds(speed, processes) / 3600
        networks = f"UNet {unet.parameters:,}, text encoder {base.text_parameters:,}, VAE {base.vae_parameters:,}"
        lines.append(f"base: {networks} parameters")
        lines.append(f"base: {len(unet.projections)} attention matrices, features {unet.feature_width} wide")
        lines.append(
            f"backbone: {backbone.parameters:,} parameters, {backbone.layers} layers of width {backbone.width}"
        )
        lines.append(f"trained: encoder {found.encoder:,}, offsets {found.offsets:,} parameters")
        lines.append("memory per process (estimated, without allocator and driver):")
        lines += [f"  {size / 1e9:7.2f} GB  {what}" for what, size in found.memory.items() if size]
        lines.append(f"  {sum(found.memory.values()) / 1e9:7.2f} GB  together")
        lines.append(f"disk: {found.checkpoint / 1e9:.2f} GB per checkpoint")
        lines.append("operations per sample (counted):")
        lines += [f"  {count / 1e9:7.0f} GFLOP  {what}" for what, count in found.operations.items() if count]
        lines.append(f"time: {hours:.1f} hours for {found.samples:,} samples on {processes} process(es), at {basis}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="commands.pretrain.validate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="TOML file, or the name of a shipped one")
    parser.add_argument("--processes", type=int, default=1, help="GPUs in all")
    parser.add_argument("--teraflops", type=float, default=0.0, help="that training reaches per process, if known")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        config = load_config(options.config, options.overrides)
    except ConfigError as error:
        log.error("wrong: %s", error)
        return 1
    findings = validate(config, options.processes)
    if options.teraflops > 0:
        speed, basis = options.teraflops * 1e12, f"{options.teraflops:g} TFLOP/s as given"
    else:
        speed, basis = measured_speed(config.training.precision)
    for line in report(findings, config, speed, basis, options.processes):
        log.info("%s", line)
    for problem in findings.problems:
        log.error("wrong: %s", problem)
    log.info(
        "%s", "The run can start." if not findings.problems else f"{len(findings.problems)} thing(s) to mend first."
    )
    return 1 if findings.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
