"""Whether a square of a photo frames the domain's subject: can the domain's word redraw what is in it?

The square is hidden under noise, and denoised with the word. What comes out is compared with what was there, both without
their mean, so that a background's color tells nothing:

    share = 1 - ||x - x'||^2 / ||x||^2,  x: the latent, x': the denoised one, each minus its spatial mean

A subject framed as the domain was trained is redrawn for the most part. One that is cut off, too large, too small, or not
there is not. But large plain parts of anything are redrawn, too, whatever the word. So a check asks what the word is worth: by which
share its error is smaller than that of the empty prompt, where noise leaves the outline; and what it redraws of next to nothing.

    score of a check = gain(0.65) + gain(0.75) + share(0.97),  gain = 1 - ||x - x'||^2 / ||x - x'(empty prompt)||^2

``python -m benchmarks.crop`` measures it. Levels and limits were chosen on validation faces of the mini world.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...crop import Square
from ...diffusion import draw_samples
from ...subject_search import Care, Sight
from .word_model import WordModel

# Noise levels, as shares of the schedule (0: clean). A look tells best at much noise: little leaves so much to be seen that
# large plain parts of anything are redrawn.
LOOKED, COMPARED, UNSEEN = 0.8, (0.65, 0.75), 0.97
# The score at which a check convinces, and settles it.
CONVINCING, SETTLING = 0.12, 0.25
# Squares with less in them than this share of what the fullest one holds are not looked at.
FLAT = 0.15
# The same noise for all squares, so that they compare; whatever the seed of the learning.
SEED = 0
AT_ONCE = 16  # squares that pass the UNet together


class View(Protocol):
    """A photo, as the autoencoder sees squares of it."""

    def latents(self, squares: Sequence[Square]) -> Tensor:
        """``(n, 4, h, w)``, clean, in the UNet's scale, on its device."""


class Redrawing:
    """Looks at squares of one photo, as ``subject_search.Look``; call it inside ``unet.using(...)`` the domain's weights.

    Args:
        words: the untuned domain's.
        view: the photo.
        on_pass: called after every pass; whatever it raises passes through.
        at_once: how many squares pass the UNet together.
    """

    def __init__(
        self, words: WordModel, view: View, on_pass: Callable[[], object] = lambda: None, at_once: int = AT_ONCE
    ) -> None:
        self.words, self.view, self.on_pass, self.at_once = words, view, on_pass, at_once
        self._fullest = 0.0
        with torch.no_grad():
            self._domain_word = words.contexts([0], words.domain_word_embedding[None])

    @torch.no_grad()
    def __call__(self, squares: Sequence[Square], care: Care) -> list[Sight]:
        sights: list[Sight] = []
        for start in range(0, len(squares), self.at_once):
            sights += self._sights(squares[start : start + self.at_once], care)
        return sights

    def _sights(self, squares: Sequence[Square], care: Care) -> list[Sight]:
        latents = self.view.latents(squares)
        held = structure(latents)
        self._fullest = max(self._fullest, float(held.max()))
        full = held > FLAT * self._fullest
        sights = [Sight(0.0)] * len(held)
        if not full.any():
            return sights
        chosen = full.nonzero().flatten().tolist()
        latents, held = latents[full], held[full]
        scores = self._scores(latents, held) if care == "check" else self._shares(latents, held, LOOKED)
        for index, score in zip(chosen, scores.tolist(), strict=True):
            checked = care == "check"
            sights[index] = Sight(score, checked and score >= CONVINCING, checked and score >= SETTLING)
        return sights

    def _scores(self, latents: Tensor, held: Tensor) -> Tensor:
        """Of a check, ``(n,)``."""
        scores = self._shares(latents, held, UNSEEN)
        for level in COMPARED:
            named, silent = (self._errors(latents, context, level) for context in (self._domain_word, self.words.empty))
            scores += 1 - named / silent.clamp_min(torch.finfo(silent.dtype).tiny)
        return scores

    def _shares(self, latents: Tensor, held: Tensor, level: float) -> Tensor:
        """Which share of what there is to see the domain's word redraws, ``(n,)``."""
        return 1 - self._errors(latents, self._domain_word, level) / held

    def _errors(self, latents: Tensor, context: Tensor, level: float) -> Tensor:
        """Errors ``(n,)`` of what is redrawn with a context ``(1, T, D)``."""
        unet, count = self.words.unet, len(latents)
        timestep = min(round(level * unet.schedule.timesteps), unet.schedule.timesteps - 1)
        sample = draw_samples(SEED, [timestep], latent_shape=latents.shape[1:], batch=1, stream="subject search")
        t = torch.full((count,), timestep, device=latents.device)
        z = unet.schedule.add_noise(latents, sample.noise.to(latents.device).expand(count, -1, -1, -1), t)
        predicted = unet.denoise(z, t, context.expand(count, -1, -1)).float()
        self.on_pass()
        return structure(unet.schedule.clean(z, predicted, t, unet.prediction) - latents)


def structure(latents: Tensor) -> Tensor:
    """How much there is to see in latents ``(n, 4, h, w)``: ``(n,)``, mean square about each channel's mean."""
    return (latents - latents.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(1, 2, 3))
