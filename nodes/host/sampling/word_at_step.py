"""What a concept's word is at one denoising evaluation: F(z_t, t) -> E -> e_c = e_d + s·E (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..networks.base_model import spatial_features
from .pieces import Conds, Size, bounded_features, given_size

if TYPE_CHECKING:
    from .held_concept import HeldConcept


class WordAtStep:
    """Predicts words within ONE sampling run, and remembers what the next evaluation can use; make a new one per run.

    The word belongs to a picture, in however many pieces that is sampled: it is predicted from all of the picture, by
    passes no larger than the sampler's own (see ``pieces``), and frozen picture by picture.
    """

    def __init__(self) -> None:
        self._whole: Tensor | None = None
        self._look: Callable[[], Size] | None = None
        self._sizes: dict[torch.Size, Size] = {}
        self._features: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._words: dict[str, dict[int, Tensor]] = {}

    def predict_noise(self, executor: Callable[..., Any], x: Tensor, *arguments: Any, **options: Any) -> Any:
        """The PREDICT_NOISE wrapper: ``x`` is here before context windows choose among its pictures, or cut them."""
        before, self._whole = self._whole, x
        try:
            return executor(x, *arguments, **options)
        finally:
            self._whole = before

    def evaluate(
        self, executor: Callable[..., Any], model: Any, conds: Conds, x: Tensor, sigma: Tensor, model_options: dict
    ) -> None:
        """An evaluation begins, with the arguments of the CALC_COND_BATCH wrapper: the words asked for next are its own."""
        self._look = lambda: given_size(executor, model, conds, x, sigma, model_options)

    def word(self, held: HeldConcept, model: Any, x: Tensor, sigma: Tensor) -> Tensor:
        """e_c ``(B, D)`` of a concept; frozen once the schedule has passed its ``end_percent``.

        Args:
            held: the concept.
            model: ComfyUI's BaseModel that samples.
            x: ``(B, 4, h, w)`` at noise level ``sigma`` ``(B,)``.
        """
        settings, known = held.concept.sampling, self._words.setdefault(held.concept.fingerprint, {})
        end = float(model.model_sampling.percent_to_sigma(settings.end_percent))
        pictures = self._pictures(x) if end > 0 else []
        if float(sigma[0]) < end and all(picture in known for picture in pictures):
            return torch.stack([known[picture] for picture in pictures])
        word = held.concept.predictor.word(self._features_of(held, model, x, sigma))
        known.update({picture: row for picture, row in zip(pictures, word, strict=False) if picture >= 0})
        return word

    def _pictures(self, x: Tensor) -> list[int]:
        """Which pictures of the sampled batch the rows of ``x`` are, or show a piece of; -1: not known."""
        whole, rows = self._whole, list(range(x.shape[0]))
        if whole is None or (whole.shape == x.shape and torch.equal(whole, x)):
            return rows
        if whole.shape[1:] == x.shape[1:]:
            found = [torch.nonzero((whole == row).flatten(1).all(dim=1)) for row in x]
            if all(len(index) for index in found):
                return [int(index[0]) for index in found]
        # A window of each picture, or each picture changed by a guidance method.
        return rows if whole.shape[0] == x.shape[0] else [-1] * len(rows)

    def _features_of(self, held: HeldConcept, model: Any, x: Tensor, sigma: Tensor) -> Tensor:
        """F ``(B, width)`` on the encoder's device; several passes over one evaluation cost one feature pass."""
        size, whole = self._size_given(x), self._whole
        if whole is not None and whole.shape[0] == x.shape[0] and whole.shape != x.shape and whole.ndim == x.ndim:
            # A window that cuts the pictures themselves.
            x = whole
        for empty, seen, level, features in self._features:
            if torch.equal(seen, x) and torch.equal(level, sigma) and torch.equal(empty, held.empty):
                return features
        patcher = getattr(model, "current_patcher", None)
        if patcher is not None and patcher.current_hooks is not None:
            # The last prompt's hooks would still be in the weights; the word must not depend on who came last.
            patcher.apply_hooks(None)
        network, dtype = model.diffusion_model, model.get_dtype_inference()
        levels = sigma if sigma.shape[0] == x.shape[0] else sigma[:1].expand(x.shape[0])
        t = model.model_sampling.timestep(levels).float()
        context = held.empty.to(x.device, dtype)

        def means(part: Tensor, rows: slice) -> Tensor:
            z = model.model_sampling.calculate_input(levels[rows], part).to(dtype)
            return spatial_features(network, z, t[rows], context.expand(part.shape[0], -1, -1), {})

        features = bounded_features(means, x, size).to(next(held.concept.predictor.network.parameters()).device)
        kept = [entry for entry in self._features if torch.equal(entry[1], x) and torch.equal(entry[2], sigma)]
        # Samplers write into x: compare with a copy.
        self._features = [*kept, (held.empty, x.clone(), sigma.clone(), features)]
        return features

    def _size_given(self, x: Tensor) -> Size:
        """How large a latent the UNet is given of one like ``x``; looked for once per run and shape."""
        if x.shape not in self._sizes:
            assert self._look is not None
            self._sizes[x.shape] = self._look()
        return self._sizes[x.shape]
