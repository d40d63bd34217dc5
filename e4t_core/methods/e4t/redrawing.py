"""Whether a square of a photo frames the domain's subject: can the domain redraw what is in it?

The square is hidden under noise, and denoised with a word. What comes out is compared with what was there, both without
their mean, so that a background's color tells nothing:

    share = 1 - ||x - x'||^2 / ||x||^2,  x: the latent, x': the denoised one, each minus its spatial mean

A subject framed as the domain was trained is redrawn for the most part. One that is cut off, too large, too small, or not
there is not. A look takes the domain's word. But large plain parts of anything are redrawn, too, whatever the word. So a check
asks what a word is worth: by which share its error is smaller than that of the empty prompt, where noise leaves the outline; and what
it redraws of next to nothing. It asks for the domain's word, which things do not fit, and for the word that the encoder reads from the
square, which fits individuals whom the domain's word does not, where they are framed as the encoder was trained:

    score of a check = mean over both words of gain(0.65) + gain(0.75) + share(0.97),
    gain = 1 - ||x - x'||^2 / ||x - x'(empty prompt)||^2

A plain thing on a plain ground may still score as a head does. Its details give it away: what the encoder reads from it makes them
worse. So a closer look asks for the encoder's gain at little noise, too, with several draws of it:

    details = mean of gain(0.2), gain(0.3), gain(0.5)

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
DETAILED = (0.2, 0.3, 0.5)
DRAWS = 3  # of the noise that details are seen through
# Scores of a check: from the first a better frame may be close by, from the second on a subject is there,
# unless its details say otherwise. All three limits were chosen on validation faces, framed closely, and on plain things.
HINTING, CONVINCING = 0.1, 0.33
IN_DETAIL = -0.025
# Squares with less in them than this share of what the fullest one holds are not looked at.
FLAT = 0.15
# The same noise for all squares, so that they compare; whatever the seed of the learning.
SEED = 0
AT_ONCE = 16  # squares that pass the UNet together


class View(Protocol):
    """A photo, as the autoencoder sees squares of it."""

    def latents(self, squares: Sequence[Square]) -> Tensor:
        """``(n, 4, h, w)``, clean, in the UNet's scale, on its device."""

    def clip_features(self, squares: Sequence[Square]) -> Tensor:
        """``(n, L, C)`` of the image backbone, on the UNet's device."""


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
        full = (held > FLAT * self._fullest).nonzero().flatten()
        sights = [Sight(0.0)] * len(held)
        if not len(full):
            return sights
        latents, held = latents[full], held[full]
        if care == "look":
            seen = [Sight(share) for share in self.shares(latents, held).tolist()]
        else:
            clip_features = self.view.clip_features([squares[index] for index in full.tolist()])
            scores = self.scores(latents, held, clip_features)
            convinced = scores >= CONVINCING
            if care == "confirm":
                convinced &= self.details(latents, clip_features) >= IN_DETAIL
            seen = [
                Sight(score, hints=score >= HINTING, convinces=there)
                for score, there in zip(scores.tolist(), convinced.tolist(), strict=True)
            ]
        for index, sight in zip(full.tolist(), seen, strict=True):
            sights[index] = sight
        return sights

    def shares(self, latents: Tensor, held: Tensor) -> Tensor:
        """Scores ``(n,)`` of a look at latents ``(n, 4, h, w)`` that hold so much :func:`structure`."""
        return 1 - self._errors(*self._hidden(latents, LOOKED), self._domain_word, latents) / held

    def scores(self, latents: Tensor, held: Tensor, clip_features: Tensor) -> Tensor:
        """Scores ``(n,)`` of a check."""
        scores = torch.zeros_like(held)
        for level in (*COMPARED, UNSEEN):
            z, t = self._hidden(latents, level)
            whole = held if level == UNSEEN else self._errors(z, t, self.words.empty, latents)
            for context in (self._domain_word, self._own_words(z, t, clip_features)):
                scores += 1 - self._errors(z, t, context, latents) / whole.clamp_min(torch.finfo(whole.dtype).tiny)
        return scores / 2

    def details(self, latents: Tensor, clip_features: Tensor) -> Tensor:
        """How much better the encoder's words redraw details than none, ``(n,)``."""
        gains = [
            self._gains(*self._hidden(latents, level, draw), latents, clip_features)
            for level in DETAILED
            for draw in range(DRAWS)
        ]
        return torch.stack(gains).mean(0)

    def _gains(self, z: Tensor, t: Tensor, latents: Tensor, clip_features: Tensor) -> Tensor:
        named = self._errors(z, t, self._own_words(z, t, clip_features), latents)
        silent = self._errors(z, t, self.words.empty, latents)
        return 1 - named / silent.clamp_min(torch.finfo(silent.dtype).tiny)

    def _hidden(self, latents: Tensor, level: float, draw: int = 0) -> tuple[Tensor, Tensor]:
        """Latents under a draw of noise, and their timesteps ``(n,)``."""
        schedule, count = self.words.unet.schedule, len(latents)
        timestep = min(round(level * schedule.timesteps), schedule.timesteps - 1)
        sample = draw_samples(SEED + draw, [timestep], latent_shape=latents.shape[1:], batch=1, stream="subject search")
        t = torch.full((count,), timestep, device=latents.device)
        return schedule.add_noise(latents, sample.noise.to(latents.device).expand(count, -1, -1, -1), t), t

    def _own_words(self, z: Tensor, t: Tensor, clip_features: Tensor) -> Tensor:
        """Contexts ``(n, L, D)`` of the words that the encoder reads from squares."""
        words = self.words.word(z, t, clip_features)
        self.on_pass()
        return self.words.contexts([0] * len(words), words)

    def _errors(self, z: Tensor, t: Tensor, context: Tensor, latents: Tensor) -> Tensor:
        """Errors ``(n,)`` of what is redrawn with contexts ``(1 or n, T, D)``."""
        unet = self.words.unet
        predicted = unet.denoise(z, t, context.expand(len(z), -1, -1)).float()
        self.on_pass()
        return structure(unet.schedule.clean(z, predicted, t, unet.prediction) - latents)


def structure(latents: Tensor) -> Tensor:
    """How much there is to see in latents ``(n, 4, h, w)``: ``(n,)``, mean square about each channel's mean."""
    return (latents - latents.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(1, 2, 3))
