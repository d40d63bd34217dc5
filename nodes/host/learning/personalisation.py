"""One run of "E4T Personalize": from what is wired in to a tuned concept, out of the store if it is there."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....e4t_core.concept import Concept
from ....e4t_core.methods.e4t.domain import Domain, check_base
from ....e4t_core.presets import TuningSettings
from ....e4t_core.tuning import ConceptPhotos, tune
from ..networks.backbone import image_features
from ..networks.base_model import ComfyUNet, check_supported
from ..networks.cpu_products import bfloat16_products
from ..networks.text_encoder import ComfyTextEncoder, unload
from ..prompt.triggers import check_trigger
from ..sampling.patched_model import ConceptParts, domain_offset
from . import photos as photo_preparation
from .content_key import base_fingerprint, content_key, weights_key
from .progress import Progress, check_cancelled, show_text
from .result_store import ResultStore

logger = logging.getLogger(__name__)

BYPASSED = "A LoRA of Load LoRA (Bypass) is not seen by tuning: load it with Load LoRA, or behind E4T Personalize."

LATENT_CHANNELS, PIXELS_PER_LATENT = 4, 8


class UnsupportedVAEError(ValueError):
    """A VAE whose latents the base model does not read."""


@dataclass(frozen=True, eq=False)
class LoadedDomain:
    """A domain with the CLIP_VISION model that reads photos for it, if one was wired in."""

    domain: Domain
    clip_vision: comfy.clip_vision.ClipVisionModel | None = None


@dataclass(frozen=True, eq=False)
class Request:
    """All that decides a concept.

    Attributes:
        model, clip, vae: as wired in; none of them is changed.
        loaded: the domain.
        images: IMAGE ``(n, H, W, C)`` in [0, 1], photos of ONE concept.
        masks: MASK, 1 = learn here; or none.
        word: what the concept is called in prompts.
        settings: of tuning; none: the domain's preset.
        seed: of noise, timesteps and templates.
    """

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    loaded: LoadedDomain
    images: Tensor
    masks: Tensor | None
    word: str
    settings: TuningSettings | None
    seed: int


def personalise(request: Request, store: ResultStore) -> ConceptParts:
    """The concept for a request: from the store, or tuned now and put there.

    Raises:
        ValueError: something wired in cannot be used; the message is one sentence that says what and why.
        InterruptProcessingException: the person cancelled.
        torch.OutOfMemoryError: also half of the micro-batch did not fit; a note says what to lower.
    """
    check_trigger(request.word)
    check_supported(request.model)
    _check_given("text encoder", "CLIP", request.clip)
    _check_given("VAE", "VAE", request.vae)
    _check_vae(request.vae)
    domain = request.loaded.domain
    settings = request.settings or domain.info.preset
    prepared = photo_preparation.prepare_photos(
        request.images, request.masks, domain.info.image_size, domain.info.crop_margin
    )
    progress = Progress(prepared.images)
    progress.show_photos()
    notes = [note for note in (prepared.note, *_about_settings(settings, domain, prepared.masks)) if note]
    if request.model.injections or request.clip.patcher.injections:
        notes.append(BYPASSED)
        logger.warning("E4T: %s", BYPASSED)
    show_text("\n".join([f"Learning {request.word} …", *notes]))

    key = _key(request, settings)
    parts = store.get(key)
    if parts is None:
        started = time.perf_counter()
        parts = _tune(request, settings, prepared, progress)
        store.put(key, parts)
        told = f"learned in {time.perf_counter() - started:.1f} s."
    else:
        told = "was learned before from the same inputs: that concept is used."
        logger.info("E4T: %s %s", request.word, told)
    # The browser keeps a node's text until another one comes.
    show_text("\n".join([f"{request.word} {told}", *notes]))
    # What is learned is stored by content: how it is called and how it is sampled are this request's.
    concept = dataclasses.replace(parts.concept, word=request.word, settings=settings)
    return dataclasses.replace(parts, concept=concept)


def _about_settings(settings: TuningSettings, domain: Domain, masks: Tensor | None) -> list[str]:
    """What the settings do that a person may not expect."""
    notes = []
    preset, mine = dataclasses.asdict(domain.info.preset), dataclasses.asdict(settings)
    others = [f"{name} {_shown(mine[name])} ({_shown(preset[name])})" for name in mine if mine[name] != preset[name]]
    if others:
        notes.append(f"E4T Settings instead of the domain's preset (in brackets): {', '.join(others)}.")
    if masks is not None and not settings.use_mask and settings.steps > 0:
        notes.append("The mask decides the crop only: use_mask is off, so all of the crop is learned.")
    if masks is None and settings.use_mask and settings.find_subject and settings.steps > 0:
        notes.append("The subject is found by itself (bright in the preview). Paint or wire in a mask to choose it.")
    return notes


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _key(request: Request, settings: TuningSettings) -> str:
    clip_vision = request.loaded.clip_vision
    return content_key(
        request.images,
        request.masks,
        request.loaded.domain.fingerprint,
        weights_key(request.model),
        str(type(request.model.get_model_object("model_sampling")).__mro__),
        request.model.get_model_object("model_sampling").sigmas,
        weights_key(request.clip.patcher),
        request.clip.layer_idx,
        weights_key(request.vae.patcher),
        weights_key(clip_vision.patcher) if clip_vision is not None else None,
        settings.learned_with(),
        request.seed,
    )


def _check_given(what: str, output: str, given: object) -> None:
    """ComfyUI's loaders give None for what a file does not hold (a UNet without text encoder, for one)."""
    if given is None:
        raise ValueError(f"The checkpoint holds no {what}, so {output} is empty: load one by itself and wire it in.")


def _check_vae(vae: comfy.sd.VAE) -> None:
    ratio = vae.downscale_ratio
    if vae.latent_channels != LATENT_CHANNELS or vae.latent_dim != 2 or ratio != PIXELS_PER_LATENT:
        raise UnsupportedVAEError(
            f"E4T needs a Stable Diffusion 1.x or 2.x VAE (4 latent channels, 8 pixels per latent), but this VAE has"
            f" {vae.latent_channels} channels and {ratio} pixels: wire in the VAE of the base model's checkpoint."
        )


def _tune(
    request: Request, settings: TuningSettings, prepared: photo_preparation.Photos, progress: Progress
) -> ConceptParts:
    started = time.perf_counter()
    domain = request.loaded.domain
    check_cancelled()
    latents = request.model.model.process_latent_in(request.vae.encode(prepared.images))
    check_cancelled()
    features = image_features(domain, request.loaded.clip_vision, prepared.images)
    check_cancelled()
    # Their full memory is better spent on tuning, which holds its own copies; the sampler loads them again.
    unload(request.model, request.clip.patcher)
    with torch.inference_mode(False):
        photos = ConceptPhotos(
            latents.detach().float().cpu().clone(),
            features.clone(),
            None if prepared.masks is None else prepared.masks.clone(),
        )
        unet, text = ComfyUNet(request.model), ComfyTextEncoder(request.clip)
        check_base(domain.info, text.width, unet.prediction, unet.feature_width, unet.attention_projections())
        base = base_fingerprint(weights_key(request.model), unet.parameters())

        def run(fitting: TuningSettings) -> Concept:
            with bfloat16_products(unet.device):
                return tune(
                    unet,
                    text,
                    domain,
                    photos,
                    fitting,
                    request.seed,
                    word=request.word,
                    on_step=progress.step,
                    base_fingerprint=base,
                )

        concept = _tune_in_memory(settings, run)
        with torch.no_grad():
            empty = text.empty().detach().cpu()
        parts = ConceptParts(concept, empty, domain_offset(unet.parameters(), concept.domain_factors))
    logger.info(
        "E4T: %s learned in %.1f s (%d steps, %.0f MB).",
        request.word,
        time.perf_counter() - started,
        settings.steps,
        parts.size() / 2**20,
    )
    return parts


def _tune_in_memory(settings: TuningSettings, run: Callable[[TuningSettings], Concept]) -> Concept:
    """Run a tuning; out of memory, once again with half the micro-batch (the same batch, so nearly the same result)."""
    try:
        return run(settings)
    except Exception as error:
        if not comfy.model_management.is_oom(error) or settings.micro_batch == 1:
            _explain_memory(error, settings)
            raise
    # Outside the handler: its traceback would keep the failed run's tensors alive.
    smaller = dataclasses.replace(settings, micro_batch=max(1, settings.micro_batch // 2))
    logger.warning(
        "E4T: out of memory with micro_batch %d; trying once more with %d.", settings.micro_batch, smaller.micro_batch
    )
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    try:
        return run(smaller)
    except Exception as error:
        _explain_memory(error, smaller)
        raise


def _explain_memory(error: Exception, settings: TuningSettings) -> None:
    """Add what to do to an out-of-memory error; its type stays, because ComfyUI recognises it by that."""
    if comfy.model_management.is_oom(error):
        note = (
            f"E4T ran out of memory while tuning with micro_batch {settings.micro_batch}: lower micro_batch in E4T"
            " Settings, switch train_unet off there, or close other programs."
        )
        if hasattr(error, "add_note"):  # Python 3.11; an older one has the log line below
            error.add_note(note)
        logger.error(note)
