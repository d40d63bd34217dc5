"""From a request to a concept, in one straight line: the photo's way."""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor

from ....e4t_core.concept import Concept
from ....e4t_core.memory_need import need
from ....e4t_core.memory_plan import MemoryPlan
from ....e4t_core.run import BaseModel, Photos
from ....e4t_core.training import train
from ..networks.backbone import image_features
from ..networks.base_model import ComfyUNet
from ..networks.compute_type import bfloat16_products, compute_type, uses_autocast
from ..networks.text_encoder import ComfyTextEncoder, unload
from ..sampling.held_concept import HeldConcept
from .content_key import WeightHashes, content_key
from .memory import Free, plans_that_fit, run_in_memory, work_of
from .notes import about_request, what_was_made
from .photos import PreparedPhotos, prepare_photos
from .progress import Progress, check_cancelled
from .request import Request, check
from .result_store import ResultStore

logger = logging.getLogger(__name__)


def learn(request: Request, store: ResultStore, progress: Progress) -> HeldConcept:
    """The concept for a request: from the store, or learned now and put there; ``progress`` tells the person.

    Raises:
        ValueError: something wired in cannot be used; the message is one sentence that says what and why.
        InterruptProcessingException: the person cancelled.
        TooLittleMemoryError: no memory plan fits, or not the one that was asked for.
        torch.OutOfMemoryError: the smallest memory plan did not fit after all; a note says what to lower.
    """
    check(request)
    photos = prepare_photos(request.images, request.masks, request.image_size, request.crop_margin, request.mask_means)
    progress.begin(photos.images, about_request(request, photos))
    key = _key(request, photos, store.hashes)
    held = store.get(key)
    if held is None:
        started = time.perf_counter()
        held = _learn(request, photos, progress, store)
        store.put(key, held, progress.sheet)
        seconds = time.perf_counter() - started
        logger.info("E4T: %s learned in %.1f s (%.0f MB).", request.trigger, seconds, held.size() / 2**20)
        told = what_was_made(request, seconds)
    else:
        progress.again(store.sheet(key), held.concept.losses)
        told = f"{request.trigger} was learned before from the same inputs: that concept is used."
        logger.info("E4T: %s", told)
    for note in held.concept.notes:
        logger.warning("E4T: %s", note)
    progress.done(told, held.concept.notes)
    return held.called(request.trigger, request.sampling)


def _key(request: Request, photos: PreparedPhotos, hashes: WeightHashes) -> str:
    sampling = request.model.get_model_object("model_sampling")
    return content_key(
        # Not what is wired in: an all-zero mask is none, and what the crop leaves out is not learned.
        photos.images,
        photos.masks,
        request.method.name,
        request.decides,
        request.loaded and request.loaded.decides(hashes),
        hashes.weights_key(request.model),
        str(type(sampling).__mro__),
        sampling.sigmas,
        hashes.weights_key(request.clip.patcher),
        request.clip.layer_idx,
        hashes.weights_key(request.vae.patcher),
        request.settings.learned_with(),
        request.seed,
    )


def _learn(request: Request, photos: PreparedPhotos, progress: Progress, store: ResultStore) -> HeldConcept:
    given = _encode(request, photos)
    # Their full memory is better spent on tuning, which holds its own copies; the sampler loads them again.
    unload(request.model, request.clip.patcher, request.vae.patcher)
    with torch.inference_mode(False):
        device = request.model.load_device
        unet = ComfyUNet(request.model, compute_type(device))
        text = ComfyTextEncoder(request.clip, rounded=device.type != "cpu" and uses_autocast(device))
        hashes = store.hashes
        base = BaseModel(unet, text, hashes.base_fingerprint(hashes.weights_key(request.model), unet.parameters()))
        concept = _train(request, base, unet, given, progress)
        with torch.no_grad():
            empty = text.empty().detach().cpu()
        return HeldConcept.of(concept, empty, unet.parameters(), store.offset(concept))


def _train(request: Request, base: BaseModel, unet: ComfyUNet, given: Photos, progress: Progress) -> Concept:
    """The training loop, with the fastest memory plan that fits."""
    free = Free.now(unet.device)
    work = work_of(request.method, request.settings, unet, given.latents.shape[-1] * given.latents.shape[-2])

    def told(plan: MemoryPlan) -> str:
        return f"{plan.told()}, {free.told(need(plan, work))}"

    def run(plan: MemoryPlan) -> Concept:
        logger.info("E4T: %s.", told(plan))
        progress.memory(told(plan))
        with bfloat16_products(unet.device):
            method, settings = request.method, request.settings
            return train(method, base, given, settings, request.seed, request.trigger, progress.step, plan)

    return run_in_memory(plans_that_fit(request.settings, work, free), run, told)


def _encode(request: Request, photos: PreparedPhotos) -> Photos:
    """What the networks make of the photos, once for the whole run."""
    check_cancelled()
    latents: Tensor = request.model.model.process_latent_in(request.vae.encode(photos.images))
    check_cancelled()
    features = None
    if request.loaded is not None:
        features = image_features(request.loaded.domain, request.loaded.clip_vision, photos.images)
        check_cancelled()
    with torch.inference_mode(False):
        return Photos(
            latents.detach().float().cpu().clone(),
            None if features is None else features.clone(),
            None if photos.masks is None else photos.masks.clone(),
        )
