"""What a concept's word is at one denoising evaluation: F(z_t, t) -> E -> e_c = e_d + s·E (paper, section 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..networks.base_model import spatial_features

if TYPE_CHECKING:
    from .held_concept import HeldConcept


class WordAtStep:
    """Predicts words within ONE sampling run, and remembers what the next evaluation can use; make a new one per run."""

    def __init__(self) -> None:
        self._features: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._words: dict[str, Tensor] = {}

    def word(self, held: HeldConcept, model: Any, x: Tensor, sigma: Tensor) -> Tensor:
        """e_c ``(B, D)`` of a concept; frozen once the schedule has passed its ``end_percent``.

        Args:
            held: the concept.
            model: ComfyUI's BaseModel that samples.
            x: ``(B, 4, h, w)`` at noise level ``sigma`` ``(B,)``.
        """
        fingerprint, settings = held.concept.fingerprint, held.concept.sampling
        end = model.model_sampling.percent_to_sigma(settings.end_percent)
        last = self._words.get(fingerprint)
        if last is not None and last.shape[0] == x.shape[0] and float(sigma[0]) < end:
            return last
        word = held.concept.predictor.word(self._features_of(held, model, x, sigma))
        self._words[fingerprint] = word
        return word

    def _features_of(self, held: HeldConcept, model: Any, x: Tensor, sigma: Tensor) -> Tensor:
        """F ``(B, width)`` on the encoder's device; several passes over one evaluation cost one feature pass."""
        for empty, seen, level, features in self._features:
            if torch.equal(seen, x) and torch.equal(level, sigma) and torch.equal(empty, held.empty):
                return features
        patcher = getattr(model, "current_patcher", None)
        if patcher is not None and patcher.current_hooks is not None:
            # The last prompt's hooks would still be in the weights; the word must not depend on who came last.
            patcher.apply_hooks(None)
        network, dtype = model.diffusion_model, model.get_dtype_inference()
        z = model.model_sampling.calculate_input(sigma, x).to(dtype)
        t = model.model_sampling.timestep(sigma).float()
        context = held.empty.to(x.device, dtype).expand(x.shape[0], -1, -1)
        features = spatial_features(network, z, t, context, {})
        features = features.to(next(held.concept.predictor.network.parameters()).device)
        kept = [entry for entry in self._features if torch.equal(entry[1], x) and torch.equal(entry[2], sigma)]
        # Samplers write into x: compare with a copy.
        self._features = [*kept, (held.empty, x.clone(), sigma.clone(), features)]
        return features
