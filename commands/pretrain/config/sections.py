"""The settings of a pre-training run: what each means, its default, its range.

A config file is TOML with these sections (``config_file`` reads it); the shipped ones in ``configs`` say line by line
where a number comes from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from commands.base.settings import BackboneSettings, BaseSettings, ConfigError, check_place, check_section
from e4t_core.files.description import check_value
from e4t_core.files.file_errors import shown
from e4t_core.methods.e4t.domain_info import DomainInfo
from e4t_core.methods.e4t.settings import PRESETS
from e4t_core.methods.e4t.weight_offsets import FORMS, HYPERNETWORK, NETWORK
from e4t_core.settings import setting
from e4t_core.templates import NEUTRAL, templates_of

SOURCE_KINDS = ("folder", "shards", "parquet", "python")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class DomainSettings:
    """What the domain is.

    Attributes:
        name: of the domain file.
        word: the coarse descriptor, one token of the base's text encoder ("face").
        templates: prompts, each with "{}" once where the word stands; or the name of a set of them, "neutral" or "style".
        scale: s in ``e_c = e_d + s·E``; above 0. SD 1.x: 0.1; else 0.26 times the length of the word's embedding.
        preset: settings of one-shot tuning that the domain file recommends.
        image_size: side of the training pictures in pixels, a multiple of 8.
        crop_margin: room that tuning leaves around a face's box, as a share of its longer side; at least 0.
        v_size: length of the offsets' learned constant; at least 1.
        licence: of data and weights, as it shall stand in the domain file.
    """

    name: str = setting(filled=True)
    word: str = setting(filled=True)
    templates: tuple[str, ...] = NEUTRAL
    scale: float = setting(0.1, above=0)
    preset: str = setting("face", choices=tuple(PRESETS))
    image_size: int = setting(512, least=64, most=4096)
    crop_margin: float = setting(0.25, least=0)
    v_size: int = setting(1, least=1)
    licence: str = setting("unknown", filled=True)

    def __post_init__(self) -> None:
        check_section("domain", self)
        if not _is_file_name(self.name):
            raise ConfigError(
                f"domain.name = {shown(self.name)} must be a plain file name: letters, digits, spaces and . _ - + ( ), at most"
                " 100, the first no space or dot."
            )
        try:
            object.__setattr__(self, "templates", templates_of(self.templates))
        except ValueError as error:
            raise ConfigError(f"domain.templates: {error}") from error
        # What the domain file could not hold must not be told after the last step.
        for name in ("name", "word", "scale", "crop_margin", "v_size", "licence"):
            try:
                check_value(DomainInfo, "license" if name == "licence" else name, getattr(self, name), f"domain.{name}")
            except ValueError as error:
                raise ConfigError(str(error)) from error
        if self.image_size % 8:
            raise ConfigError(f"domain.image_size = {self.image_size} must be a multiple of 8, the autoencoder's step.")


@dataclass(frozen=True)
class TrainingSettings:
    """The optimization.

    Attributes:
        seed: decides every sample, noise, timestep and template of the run.
        steps: optimizer steps.
        batch: samples per optimizer step, over all processes.
        micro_batch: how many of them pass the UNet at once in a process; changes memory and time, not the result.
        learning_rate_per_sample: times ``batch`` is AdamW's learning rate (the paper: 1e-6).
        offset_rate: factor on the learning rate for the weight offsets; above 0. The paper has one rate. On a small base, where rates
            are high, offsets that learn as fast as the encoder soon outweigh the base's own weights.
        regularization: λ, the weight of ``mean ‖E‖²``; at least 0.
        warmup: steps over which the learning rate rises from 0.
        decay: share of the steps, at the end, over which it falls to 0; 0 keeps it constant.
        weight_decay, betas, eps: of AdamW.
        clip: largest norm of all gradients together; 0 does not clip.
        ema: decay of the averaged weights that the domain file gets; 0 takes the last weights.
        offset_form: "network" (the paper's), or one of its ablations: "direct" (every offset learned entry by entry),
            "hypernetwork" (offsets made from the photo's CLIP features; needs a micro_batch of 1).
        first_answer: factor on the first weights of the encoder's last layer, above 0; below 1, an untrained encoder drowns the
            domain word less.
        train_encoder, train_offsets: what is trained; what is not keeps its first weights.
        use_mask: weight the diffusion loss by the source's masks.
        stop_feature_gradient: no gradients through the UNet's feature pass (an ablation).
        precision: "fp32", "bf16" or "fp16" of the frozen networks and of autocast; what is trained stays fp32.
        gradient_checkpointing: compute the UNet's activations twice instead of keeping them.
    """

    seed: int = setting(0, least=0)
    steps: int = setting(30000, least=1)
    batch: int = setting(16, least=1)
    micro_batch: int = setting(4, least=1)
    learning_rate_per_sample: float = setting(1e-6, above=0, most=1)
    offset_rate: float = setting(1.0, above=0)
    regularization: float = setting(0.01, least=0)
    warmup: int = setting(0, least=0)
    decay: float = setting(0.0, least=0, most=1)
    weight_decay: float = setting(0.01, least=0)
    betas: tuple[float, ...] = setting((0.9, 0.999), least=0, below=1)
    eps: float = setting(1e-8, above=0)
    clip: float = setting(0.0, least=0)
    ema: float = setting(0.0, least=0, below=1)
    offset_form: str = setting(NETWORK, choices=FORMS)
    first_answer: float = setting(1.0, above=0)
    train_encoder: bool = True
    train_offsets: bool = True
    use_mask: bool = False
    stop_feature_gradient: bool = False
    precision: str = setting("bf16", choices=PRECISIONS)
    gradient_checkpointing: bool = True

    def __post_init__(self) -> None:
        check_section("training", self)
        if self.micro_batch > self.batch:
            raise ConfigError(
                f"training.micro_batch = {self.micro_batch} is larger than training.batch = {self.batch}: lower it."
            )
        if self.offset_form == HYPERNETWORK and self.micro_batch != 1:
            raise ConfigError(
                f"training.offset_form = 'hypernetwork' gives every photo weights of its own, but training.micro_batch ="
                f" {self.micro_batch} puts several photos into one pass: set it to 1."
            )
        if len(self.betas) != 2:
            raise ConfigError(f"training.betas = {list(self.betas)} must be two numbers.")
        if not (self.train_encoder or self.train_offsets):
            raise ConfigError("training.train_encoder and training.train_offsets are both false: nothing would train.")

    @property
    def learning_rate(self) -> float:
        """AdamW's: ``learning_rate_per_sample * batch``."""
        return self.learning_rate_per_sample * self.batch

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0: rises over ``warmup``, falls over the last ``decay``."""
        ending = max(1, int(self.steps * self.decay))
        falling = max(0.0, (self.steps - step) / ending) if self.decay else 1.0
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup), falling)


@dataclass(frozen=True)
class SourceSettings:
    """One source of pictures.

    Attributes:
        kind: "folder" (picture files), "shards" (webdataset tars), "parquet", or "python" (what a factory returns).
        path: of the folder or file.
        weight: its part of the samples, against the other sources' weights; above 0.
        window: shards or row groups that are mixed at once; more mix better and hold more files or memory.
        column: of a parquet file, with the pictures.
        alpha_mask: the pictures' alpha channels are their masks for ``training.use_mask`` (opaque: the loss counts there); a
            picture without one counts whole. Of kind "python" the factory decides.
        factory: "package.module:callable" for kind "python"; it is called with ``options``.
        options: of the factory.
    """

    kind: str = setting(choices=SOURCE_KINDS)
    path: str = ""
    weight: float = setting(1.0, above=0)
    window: int = setting(8, least=1, most=1000)
    column: str = setting("image", filled=True)
    alpha_mask: bool = False
    factory: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_section("data.sources", self)
        check_place("data.sources", self.kind, self.path, self.factory)


@dataclass(frozen=True)
class DataSettings:
    """The training data and how it is read.

    Attributes:
        sources: at least one.
        workers: reading processes per training process; 0 reads in the training process.
        prefetch: micro-batches that each worker makes ahead.
        most_corrupt: share of corrupt samples, 0-1, above which the run stops.
        cache_features: compute latents and CLIP features of every picture once, before training, into ``cache_folder``.
        cache_folder: of that cache; empty: beside the run.
    """

    sources: tuple[SourceSettings, ...] = field(default=())
    workers: int = setting(2, least=0, most=256)
    prefetch: int = setting(4, least=1, most=256)
    most_corrupt: float = setting(0.01, least=0, below=1)
    cache_features: bool = False
    cache_folder: str = ""

    def __post_init__(self) -> None:
        check_section("data", self)
        if not self.sources:
            raise ConfigError("data.sources is empty: name at least one source of pictures.")


@dataclass(frozen=True)
class OutputSettings:
    """What a run leaves behind.

    Attributes:
        folder: of checkpoints, logs and previews.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the latest are kept.
        log_every: steps between lines of the log.
        preview_every: steps between preview grids; 0 draws none.
        preview_prompts: of the grids, each with "{}" once.
        tensorboard: log for TensorBoard as well.
    """

    folder: str = setting(filled=True)
    checkpoint_every: int = setting(1000, least=1)
    keep_checkpoints: int = setting(3, least=1)
    log_every: int = setting(50, least=1)
    preview_every: int = setting(1000, least=0)
    preview_prompts: tuple[str, ...] = ("a photo of {}",)
    tensorboard: bool = True

    def __post_init__(self) -> None:
        check_section("output", self)
        for prompt in self.preview_prompts:
            if prompt.count("{}") != 1:
                raise ConfigError(f'output.preview_prompts has {prompt!r}, which must hold "{{}}" exactly once.')


@dataclass(frozen=True)
class Config:
    """A whole pre-training run; see the sections' classes."""

    domain: DomainSettings
    base: BaseSettings
    backbone: BackboneSettings
    training: TrainingSettings
    data: DataSettings
    output: OutputSettings


def _is_file_name(text: str) -> bool:
    """Whether a text can be a file's name on every system, and stays in its folder."""
    return len(text) <= 100 and text[0] not in " ." and all(c.isalnum() or c in " ._-+()" for c in text)
