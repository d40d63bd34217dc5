"""What is trained, and what it is trained to minimize, as ONE module: the unit that processes keep equal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from commands.base.networks import Base
from commands.pretrain.config.sections import Config
from e4t_core.diffusion import draw_samples
from e4t_core.methods.e4t.concept_encoder import ConceptEncoder
from e4t_core.methods.e4t.offset_forms import make_offsets
from e4t_core.methods.e4t.weight_offsets import HYPERNETWORK
from e4t_core.methods.e4t.word_model import WordModel

from .inputs import Inputs


class EncoderAndOffsets(nn.Module):
    """Encoder and weight offsets on a frozen base; called on :class:`Inputs` it gives the loss in parts.

    Args:
        config: of the run.
        base: the frozen base.
        layers, clip_width: of the backbone's features.
        device: where it trains.

    Raises:
        WordError: the domain word is not one token of the base's text encoder.
    """

    def __init__(self, config: Config, base: Base, layers: int, clip_width: int, device: torch.device) -> None:
        super().__init__()
        training = config.training
        unet, text = base.unet, base.text
        # First weights are drawn on the CPU, wherever they train: the same on any machine.
        drawn_on = "meta" if device.type == "meta" else None
        self.encoder = ConceptEncoder(layers, clip_width, unet.feature_width, text.width, device=drawn_on)
        with torch.no_grad():
            self.encoder.final.weight.mul_(training.first_answer)
            if training.first_answer < 1:
                self.encoder.final.bias.zero_()
        v_size = clip_width if training.offset_form == HYPERNETWORK else config.domain.v_size
        self.offsets = make_offsets(training.offset_form, unet.attention_projections(), v_size, device=drawn_on)
        self.encoder.requires_grad_(training.train_encoder)
        self.offsets.requires_grad_(training.train_offsets)
        self.to(device)
        # Not a module of this one, so that neither checkpoints nor processes carry the frozen weights.
        self._frozen = (base, unet.parameters())
        self._held: ExitStack | None = None
        self._settings = training
        self._templates = config.domain.templates
        with torch.no_grad():
            self._words = WordModel(
                unet,
                text,
                self.encoder,
                text.word(config.domain.word).detach().float().to(device),
                config.domain.scale,
                text.empty().to(device),
                self._templates,
            )

    @property
    def word_length(self) -> float:
        """‖e_d‖, the length of the domain word's embedding."""
        return float(self._words.domain_word_embedding.norm())

    @contextmanager
    def lending(self) -> Iterator[None]:
        """The UNet has the offset weights until the end: hold it over a forward AND its backward pass."""
        with ExitStack() as held:
            self._held = held
            try:
                yield
            finally:
                self._held = None

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Per sample, the diffusion loss ``(B,)`` and ‖E‖² ``(B,)``; only within :meth:`lending`."""
        assert self._held is not None, "hold lending() open over forward and backward"
        base, weights = self._frozen
        settings = self._settings
        sample = draw_samples(
            settings.seed,
            inputs.indices,
            latent_shape=inputs.latents.shape[1:],
            batch=settings.batch,
            templates=len(self._templates),
            timesteps=base.unet.schedule.timesteps,
            stream="pre-training",
        )
        device = inputs.latents.device
        self._held.enter_context(base.unet.using(self.offsets.apply_all(weights, inputs.clip_features)))
        masks = inputs.masks if settings.use_mask else None
        parts = self._words.losses(
            inputs.latents, inputs.clip_features, sample.to(device), masks, settings.stop_feature_gradient
        )
        return parts.diffusion, parts.offset

    def words(self, clip_features: Tensor, features: Tensor) -> Tensor:
        """Word embeddings ``e_d + s·E`` ``(B, D)``."""
        return self._words.at(self.encoder(clip_features, features).float())

    @property
    def empty(self) -> Tensor:
        """Context ``(1, L, D)`` of the empty prompt."""
        return self._words.empty

    @torch.no_grad()
    def offset_rms(self, clip_features: Tensor) -> float:
        """Root mean square of all offsets Δ, for the photos with these features."""
        total, count = 0.0, 0
        fixed = self.offsets.fixed(clip_features)
        for name, (rows, columns) in self.offsets.shapes.items():
            ones = torch.ones(rows, columns, device=clip_features.device)
            total += float((fixed.apply(name, ones) - 1).double().square().sum())
            count += rows * columns
        return (total / count) ** 0.5
