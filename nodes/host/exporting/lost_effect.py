"""What a stock file loses of a concept's effect, measured by noise predictions of the MODEL that it is drawn on.

A likeness is for people to judge, and takes many pictures. Noise predictions take seconds: the same noisy latents and the same
prompt go through the base, through the base with the concept, and through the base with the file as ComfyUI's own LoRA
loader reads it. What is lost is how far the file's predictions are from the concept's, as a share of how far the concept's are
from the base's.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....e4t_core.concept import Concept, WordPredictor
from ..networks.base_model import ComfyUNet, spatial_features
from ..networks.text_encoder import ComfyTextEncoder
from ..prompt.prompt_memory import PromptMemory
from ..sampling.held_concept import HeldConcept
from ..sampling.patched_model import with_concept, without_concepts

# Noise levels, evenly over the schedule, and the latents' side: a square picture of 128 pixels.
PROBES, SIDE = 8, 16
TEMPLATE = "a photo of {}"


@dataclass(frozen=True)
class LostEffect:
    """Shares of what the concept's weights move in noise predictions.

    Attributes:
        weights: lost by the file, with the same fixed word in both.
        refinement: lost because a stock program cannot refine the word at every step; none where the concept does not.
    """

    weights: float
    refinement: float | None


def lost_effect(model: ModelPatcher, clip: comfy.sd.CLIP, concept: Concept, lora: Mapping[str, Tensor]) -> LostEffect:
    """What a LoRA loses of a concept.

    Args:
        model: the base that the concept is drawn on; concepts that it holds do not count.
        clip: its text encoder.
        concept: whose word stands in the prompt.
        lora: tensors of the LoRA file.

    Raises:
        ValueError: the text encoder is of another family than the concept.
    """
    text = ComfyTextEncoder(clip)
    if concept.embedding.shape[-1] != text.width:
        raise ValueError(
            f"The concept's word has {concept.embedding.shape[-1]} numbers and this CLIP's words have {text.width}: wire in"
            " MODEL and CLIP of the base that it was learned on."
        )
    plain = without_concepts(model)
    with torch.inference_mode(False), torch.no_grad():
        empty = text.empty().detach().cpu()
        fixed = text.encode([TEMPLATE], concept.embedding.float()[None]).expand(PROBES, -1, -1)
        # Its weights alone: ComfyUI takes a network that outlives one of its patchers for a memory leak.
        fixed_word = dataclasses.replace(concept, predictor=None)
        held = HeldConcept.of(fixed_word, empty, ComfyUNet(plain).parameters())
    base = _Loaded(plain).predictions(fixed)
    drawn = _Loaded(with_concept(plain, held, PromptMemory()))
    wanted = drawn.predictions(fixed)
    refinement = None
    if concept.refines and concept.predictor is not None:
        with torch.inference_mode(False), torch.no_grad():
            words = _words(concept.predictor, drawn.features(empty))
            refined = text.encode([TEMPLATE] * PROBES, words)
        refinement = _share(drawn.predictions(refined), wanted, base)
    stock, _ = comfy.sd.load_lora_for_models(plain, None, dict(lora), 1.0, 0.0)
    return LostEffect(_share(_Loaded(stock).predictions(fixed), wanted, base), refinement)


def _share(found: Tensor, wanted: Tensor, base: Tensor) -> float:
    moved = (wanted - base).norm()
    return float((found - wanted).norm() / moved) if moved > 0 else 0.0


def _words(predictor: WordPredictor, features: Tensor) -> Tensor:
    # A copy: ComfyUI keeps book of where the network itself is.
    own = copy.deepcopy(predictor)
    own.network.cpu()
    return own.word(features)


class _Loaded:
    """A MODEL as the sampler has it, asked for predictions on the fixed probes."""

    def __init__(self, model: ModelPatcher) -> None:
        self._model = model
        device = model.load_device
        generator = torch.Generator().manual_seed(0)
        latents, noise = (torch.randn((PROBES, 4, SIDE, SIDE), generator=generator).to(device) for _ in range(2))
        self._sampling = model.get_model_object("model_sampling")
        steps = ((torch.arange(PROBES) + 0.5) * len(self._sampling.sigmas) / PROBES).long()
        self._sigmas = self._sampling.sigmas[steps.to(self._sampling.sigmas.device)].float().to(device)
        self._noisy = latents + self._sigmas.view(-1, 1, 1, 1) * noise

    def predictions(self, context: Tensor) -> Tensor:
        """Noise ``(PROBES, 4, SIDE, SIDE)`` float32 on the CPU, for a context ``(PROBES, L, D)``."""
        model = self._load()
        # No options: what other packs change of the network is not the file's doing.
        clean = model.apply_model(self._noisy, self._sigmas, c_crossattn=context.to(self._noisy.device))
        return ((self._noisy - clean) / self._sigmas.view(-1, 1, 1, 1)).float().cpu()

    def features(self, empty: Tensor) -> Tensor:
        """Features ``(PROBES, feature_width)`` on the CPU, for the context ``(1, L, D)`` of the empty prompt."""
        model = self._load()
        dtype = model.get_dtype_inference()
        z = self._sampling.calculate_input(self._sigmas, self._noisy).to(dtype)
        context = empty.to(z).expand(PROBES, -1, -1)
        return spatial_features(model.diffusion_model, z, self._sampling.timestep(self._sigmas), context, {}).cpu()

    def _load(self) -> Any:
        comfy.model_management.load_models_gpu([self._model])
        return self._model.model
