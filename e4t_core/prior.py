"""Prior preservation (Ruiz et al. 2022, arXiv 2208.12242): the class stays what it was while one of it is learned.

Pictures of "a photo of <class>" are drawn by the untouched base, once, and learned beside the photos:

    loss = diffusion loss(photo, "a photo of <word>") + weight * diffusion loss(prior picture, "a photo of <class>")

The paper's weight is 1. It draws about 1,000 pictures with its own ancestral sampler and says that fewer do. They are kept here as
latents, which are nearly what the VAE would make of the pictures.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .ddim import ddim
from .diffusion import DiffusionSample, denoising_errors, draw_samples
from .memory_plan import MemoryPlan
from .photos import Photos, TuningError
from .run import BaseModel
from .settings import setting
from .sibling import Sibling, SiblingRun, SiblingSettings

TEMPLATE = "a photo of {}"
"""What the base is asked for, with the class word; it is also what prior pictures are learned with."""
STEPS, GUIDANCE = 30, 7.5
"""Of the pictures' drawing."""
AT_ONCE = 4
"""Pictures that are drawn together: in groups of always the same, because what is beside a picture may change its last bits."""


@dataclass(frozen=True)
class PriorSettings(SiblingSettings):
    """Settings of methods that can preserve a prior.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    prior_weight: float = setting(
        1.0,
        "How much pictures of the class count that the base model drew before. They keep the class from becoming the photo."
        " 0: none are drawn.",
        least=0,
        most=10,
        step=0.1,
    )
    prior_pictures: int = setting(
        100,
        "How many such pictures are drawn, once for a base model and a class word; they are kept.",
        least=1,
        most=1000,
    )
    prior_seed: int = setting(0, "Of those pictures. Another one draws others.", least=0, most=1_000_000, advanced=True)


@dataclass(frozen=True)
class WantedPrior:
    """The pictures that a method asks for.

    Attributes:
        word: the class word.
        count: of pictures, 1 or more.
        seed: of their noise.
    """

    word: str
    count: int
    seed: int

    def groups(self, known: int = 0) -> list[range]:
        """Numbers of the pictures by group, without those that are there already: 0 to ``known`` - 1."""
        groups = [range(first, first + AT_ONCE) for first in range(0, self.count, AT_ONCE)]
        return [group for group in groups if group.stop > known]

    def noise(self, numbers: Sequence[int], size: tuple[int, int]) -> Tensor:
        """The noise ``(n, 4, h, w)`` of pictures by their numbers; each one's is the same whatever it is drawn with."""
        return draw_samples(self.seed, numbers, latent_shape=(4, *size), batch=1, stream="prior picture").noise


def kept(latents: Tensor) -> Tensor:
    """Latents as they are kept: rounded to half precision, so that those from a file and those just drawn are the same."""
    return latents.detach().to("cpu", torch.float32).half()


@torch.no_grad()
def draw_prior(
    base: BaseModel,
    wanted: WantedPrior,
    numbers: Sequence[int],
    size: tuple[int, int],
    on_step: Callable[[], object] = lambda: None,
) -> Tensor:
    """Some of the pictures as latents ``(n, 4, h, w)`` in the UNet's scale, by DDIM in :data:`STEPS` steps.

    Args:
        base: untouched.
        wanted: which.
        numbers: of the pictures; one of :meth:`WantedPrior.groups`.
        size: (h, w) of the latents.
        on_step: called after every step; what it raises ends the drawing.

    Raises:
        WordError: the class word is not one token.
    """
    unet, text = base.unet, base.text
    context = text.encode([TEMPLATE], text.word(wanted.word)[None]).detach().to(unet.device)
    z = wanted.noise(numbers, size).to(unet.device)
    with unet.using({}):
        return ddim(unet, z, lambda _z, _t: context, text.empty(), STEPS, GUIDANCE, on_step)


class PriorSibling(Sibling):
    """A sibling that can preserve a prior; see :class:`Sibling` for its arguments."""

    prior: Tensor | None = None
    """Latents ``(n, 4, h, w)`` of the pictures that it asks for."""

    def wanted_prior(self, settings: Any) -> WantedPrior | None:
        """What pictures it needs, if any."""
        if settings.prior_weight == 0 or settings.steps == 0:
            return None
        return WantedPrior(self.class_word, settings.prior_pictures, settings.prior_seed)

    def passes_of(self, settings: Any) -> int:
        """Passes of the UNet that a sample takes."""
        return 1 if self.wanted_prior(settings) is None else 2

    def with_prior(self, latents: Tensor) -> PriorSibling:
        """The same method with the pictures, ``(n, 4, h, w)`` in the UNet's scale."""
        new = copy.copy(self)
        new.prior = latents
        return new


class PriorRun(SiblingRun):
    """A run whose loss has the prior's part, if its method has pictures.

    Raises:
        TuningError: the pictures that the settings ask for are missing, of another size than the photos, or not finite.
    """

    def __init__(
        self,
        method: PriorSibling,
        base: BaseModel,
        photos: Photos,
        settings: Any,
        seed: int,
        trigger: str,
        plan: MemoryPlan,
    ) -> None:
        super().__init__(method, base, photos, settings, seed, trigger, plan)
        self.prior: Tensor | None = None
        wanted = method.wanted_prior(settings)
        if wanted is not None:
            self.prior = self._checked(method.prior, wanted)
            self.prior_context = base.text.encode([TEMPLATE], self.class_row[None]).detach()

    def _checked(self, prior: Tensor | None, wanted: WantedPrior) -> Tensor:
        size = self.photos.latents.shape[1:]
        found = None if prior is None else tuple(prior.shape)
        if prior is None or found != (wanted.count, *size):
            raise TuningError(
                f"Prior preservation needs {wanted.count} pictures of {wanted.word!r} as latents of the shape {tuple(size)}, but"
                f" was given {found}: draw them first, or set prior_weight to 0."
            )
        if not torch.isfinite(prior).all():
            raise TuningError(
                f"The base model drew NaN or infinity for {TEMPLATE.format(wanted.word)!r}: run it in a wider float type, or set"
                " prior_weight to 0."
            )
        return prior.detach().to(self.device, torch.float32, copy=True)

    def learned_from(self) -> dict[str, Tensor]:
        found = super().learned_from()
        return found if self.prior is None else {**found, "prior": self.prior}

    def losses(self, sample: DiffusionSample) -> Tensor:
        if self.prior is None:
            return super().losses(sample)
        other = draw_samples(
            self.seed,
            sample.numbers,
            latent_shape=self.prior.shape[1:],
            batch=self.settings.batch,
            photos=len(self.prior),
            timesteps=self.base.unet.schedule.timesteps,
            stream="prior",
        ).to(self.device)
        both = DiffusionSample(
            torch.cat([sample.timesteps, other.timesteps]), torch.cat([sample.noise, other.noise]), (), sample.photos
        )
        latents = torch.cat([self.photos.latents[sample.photos], self.prior[other.photos]])
        contexts = self.contexts(sample.templates)
        contexts = torch.cat([contexts, self.prior_context.to(contexts).expand(len(contexts), -1, -1)])
        masks = self.photos.masks
        if masks is not None:
            masks = masks[sample.photos]
            masks = torch.cat([masks, torch.ones_like(masks)])
        photo, prior = denoising_errors(self.base.unet, latents, both, contexts, masks).chunk(2)
        return photo + self.settings.prior_weight * prior
