"""Prior pictures for DreamBooth and its kin: drawn by the base model as stock nodes would, once, and kept among the models."""

from __future__ import annotations

import logging
from collections.abc import Callable

import comfy.sample
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....e4t_core.files.prior_file import kept_prior
from ....e4t_core.loop_settings import LoopSettings
from ....e4t_core.prior import GUIDANCE, STEPS, TEMPLATE, PriorSibling, WantedPrior
from ....e4t_core.run import Method
from ..model_folders import prior_folder
from ..networks.text_encoder import ComfyTextEncoder
from ..sampling.patched_model import without_concepts
from .content_key import content_key

logger = logging.getLogger(__name__)

SAMPLER, SCHEDULER = "euler", "normal"

Told = Callable[[int, int], None]
"""Called at every step of the drawing with how many are done, and of how many; what it raises ends the drawing."""


def with_prior(
    method: Method,
    settings: LoopSettings,
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    size: tuple[int, int],
    base_key: tuple[object, ...],
    told: Told,
) -> tuple[Method, str]:
    """The method with the prior pictures that it asks for, if any; and a sentence where they could not be kept.

    Args:
        method: any.
        settings: of the method.
        model, clip: the base; concepts on them do not count, LoRAs do.
        size: (h, w) of the photos' latents.
        base_key: what of the base decides a picture.
        told: of progress.

    Raises:
        WordError: the class word is not one token.
        ModelFileError: there is no folder for them.
    """
    wanted = method.wanted_prior(settings) if isinstance(method, PriorSibling) else None
    if wanted is None:
        return method, ""
    assert isinstance(method, PriorSibling)
    key = content_key("prior", *base_key, wanted.word, wanted.seed, size, TEMPLATE, STEPS, GUIDANCE, SAMPLER, SCHEDULER)
    path = prior_folder() / f"{key[:40]}.safetensors"
    drawing = _Drawing(model, clip, wanted, size, told)
    latents, fault = kept_prior(path, wanted, size, drawing)
    if drawing.drawn:
        logger.info("E4T: %d prior pictures of %r drawn for %s.", drawing.drawn, wanted.word, path.name)
    return method.with_prior(latents.float()), fault


class _Drawing:
    """Draws groups of pictures by stock sampling; nothing is loaded before the first.

    The class word's context is made of its token, not of a text: in a prompt it might be another concept's trigger.
    """

    def __init__(
        self, model: ModelPatcher, clip: comfy.sd.CLIP, wanted: WantedPrior, size: tuple[int, int], told: Told
    ) -> None:
        self._model, self._clip, self._wanted, self._size, self._told = model, clip, wanted, size, told
        self._prepared: tuple[ModelPatcher, Tensor, Tensor] | None = None
        self._steps = 0
        self.drawn = 0

    def _prepare(self) -> tuple[ModelPatcher, Tensor, Tensor]:
        if self._prepared is None:
            with torch.inference_mode(False), torch.no_grad():
                text = ComfyTextEncoder(self._clip)
                context = text.encode([TEMPLATE], text.word(self._wanted.word)[None])
                self._prepared = without_concepts(self._model), context.cpu(), text.empty().cpu()
        return self._prepared

    def __call__(self, group: range) -> Tensor:
        model, context, empty = self._prepare()
        total = len(self._wanted.groups()) * STEPS
        before = group.start // len(group) * STEPS

        def callback(step: int, *_: object) -> None:
            self._told(before + step + 1, total)

        noise = self._wanted.noise(group, self._size)
        drawn = comfy.sample.sample(
            model,
            noise,
            STEPS,
            GUIDANCE,
            SAMPLER,
            SCHEDULER,
            [[context, {}]],
            [[empty, {}]],
            torch.zeros_like(noise),
            callback=callback,
            disable_pbar=True,
            seed=self._wanted.seed,
        )
        self.drawn += len(group)
        found: Tensor = self._model.model.process_latent_in(drawn)
        return found
