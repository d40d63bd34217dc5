"""From a request to a concept, in one straight line: the photo's way."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....e4t_core.concept import Concept
from ....e4t_core.loop_settings import LoopSettings
from ....e4t_core.memory_need import need
from ....e4t_core.memory_plan import MemoryPlan
from ....e4t_core.methods.e4t.domain import Domain
from ....e4t_core.methods.registered import method_of
from ....e4t_core.photos import Photos as LearnedPhotos
from ....e4t_core.run import BaseModel, Method, StepReport
from ....e4t_core.subject_search import Subject
from ....e4t_core.training import train
from ..networks.backbone import image_features
from ..networks.base_model import ComfyUNet, file_name
from ..networks.compute_type import bfloat16_products, compute_type, uses_autocast
from ..networks.text_encoder import ComfyTextEncoder, unload
from ..sampling.held_concept import bytes_held, tensors_of
from .content_key import WeightHashes, content_key
from .crops import Crops, choose
from .memory import AUTO, Free, TooLittleMemoryError, plans_that_fit, run_in_memory, work_of
from .notes import about_request, what_was_made
from .numbered import overview
from .photos import Photo, Photos, PreparedPhotos, cut, read_photos
from .previews import Previews
from .prior_pictures import with_prior
from .progress import Progress, check_cancelled
from .request import Request, check
from .result_store import ResultStore
from .subject_finder import Finder
from .text_knowledge import with_covariance

logger = logging.getLogger(__name__)


def learn(request: Request, store: ResultStore, progress: Progress) -> Concept:
    """The concept for a request: from the store, or learned now and put there; ``progress`` tells the person.

    Raises:
        ValueError: something wired in cannot be used; the message is one sentence that says what and why.
        InterruptProcessingException: the person cancelled.
        TooLittleMemoryError: no memory plan fits, or not the one that was asked for.
        torch.OutOfMemoryError: the smallest memory plan did not fit after all; a note says what to lower.
    """
    check(request)
    whole = read_photos(request.images, request.masks, request.image_size, request.mask_means)
    crops = _crops(request, whole, progress, store)
    photos = cut(whole, crops.squares, request.image_size)
    photos = dataclasses.replace(photos, notes=(*photos.notes, *crops.notes))
    colors = request.model.model.latent_format
    progress.previews = Previews(
        request.preview_every, request.settings.batch, colors.latent_rgb_factors, colors.latent_rgb_factors_bias
    )
    progress.begin(photos.images, about_request(request, photos), overview(whole, crops))
    key = _key(request, photos, store.hashes)
    concept = store.get(key)
    if concept is None:
        started = time.perf_counter()
        concept = _learn(request, photos, progress, store)
        store.put(key, concept, progress.sheet)
        seconds = time.perf_counter() - started
        size = bytes_held(tensors_of(concept)) / 2**20
        logger.info("E4T: %s learned in %.1f s (%.0f MB).", request.trigger, seconds, size)
        told = what_was_made(request, seconds)
    else:
        progress.again(store.sheet(key), concept.losses)
        told = f"{request.trigger} was learned before from the same inputs: that concept is used."
        logger.info("E4T: %s", told)
    for note in concept.notes:
        logger.warning("E4T: %s", note)
    progress.done(told, concept)
    return dataclasses.replace(concept, trigger=request.trigger, sampling=request.sampling)


def _crops(request: Request, photos: Photos, progress: Progress, store: ResultStore) -> Crops:
    """What is learned of each photo; the domain looks for its subject where nobody said where it is."""
    margin, size = request.crop_margin, request.image_size
    loaded = request.loaded
    if loaded is None:
        return choose(photos, request.crop, margin, size, "", None)
    info = loaded.domain.info
    finder = Finder(request, progress.searching)

    def find(photo: Photo) -> Sequence[Subject] | None:
        # The seed and the settings of tuning decide nothing here.
        decides = (loaded.decides(store.hashes), *_base_key(request.model, request.clip, store.hashes))
        key = content_key("subjects", photo.picture, size, *decides, store.hashes.weights_key(request.vae.patcher))
        known = store.subjects(key)
        if known is None:
            found = finder(photo)
            if found is None:
                return None
            known = tuple(found)
            store.remember_subjects(key, known)
        return known

    # A domain of styles learns all of a picture; of one that learns its subject only, the subject belongs in the crop.
    looks_by_itself = info.preset.use_mask and info.preset.find_subject
    return choose(photos, request.crop, margin, size, info.word, find, looks_by_itself)


def learn_again(
    concept: Concept,
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    domain_of: Callable[[Concept], Domain | None],
    store: ResultStore,
    progress: Progress,
) -> Concept:
    """A concept that is only a recipe yet: from the store, or learned now by it.

    Args:
        concept: with a recipe.
        model, clip: the base.
        domain_of: finds the domain that it was learned in, if any.
        progress: tells the person.

    Raises:
        ValueError: the base cannot be learned on.
        InterruptProcessingException, TooLittleMemoryError, torch.OutOfMemoryError: as :func:`learn`.
    """
    recipe = concept.recipe
    assert recipe is not None
    progress.begin(None, ())
    photos = recipe.photos
    # Files can say the same fingerprint of other photos.
    given = [photos.latents, photos.clip_features, photos.masks, concept.settings.learned_with(), concept.seed]
    key = content_key("recipe", concept.fingerprint, *given, *_base_key(model, clip, store.hashes))
    found = store.get(key)
    if found is None:
        method = method_of(concept, domain_of(concept))
        method = _with_prior(method, concept.settings, model, clip, photos, progress, store)
        # The plan decides the order of sums: the same one gives the same concept, bit for bit on a CPU.
        settings = dataclasses.replace(concept.settings, memory=recipe.plan.name, micro_batch=recipe.plan.micro_batch)
        base = RunBase(model, clip, method, concept.seed, concept.trigger)
        unload(model, clip.patcher)
        try:
            found = run_on(base, settings, photos, progress, store)
        except TooLittleMemoryError:
            logger.info("E4T: the memory plan of the recipe does not fit; another is used.")
            found = run_on(base, dataclasses.replace(settings, memory=AUTO, micro_batch=0), photos, progress, store)
        notes = tuple(dict.fromkeys((*concept.notes, *found.notes)))
        found = dataclasses.replace(found, settings=concept.settings, notes=notes)
        store.put(key, found)
    else:
        progress.again(None, found.losses)
    same = found.fingerprint == concept.fingerprint
    told = "the same concept" if same else "nearly the same concept: the base model, or what computes, is another"
    progress.done(f"{concept.trigger} learned again by its recipe: {told}.", found)
    return dataclasses.replace(found, trigger=concept.trigger, sampling=concept.sampling)


@dataclasses.dataclass(frozen=True, eq=False)
class RunBase:
    """What a run is on, and what it is called."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    method: Method
    seed: int
    trigger: str


def _key(request: Request, photos: PreparedPhotos, hashes: WeightHashes) -> str:
    return content_key(
        # Not what is wired in: an all-zero mask is none, and what the crop leaves out is not learned.
        photos.images,
        photos.masks,
        request.method.name,
        request.decides,
        request.loaded and request.loaded.decides(hashes),
        *_base_key(request.model, request.clip, hashes),
        hashes.weights_key(request.vae.patcher),
        request.settings.learned_with(),
        request.seed,
    )


def _base_key(model: ModelPatcher, clip: comfy.sd.CLIP, hashes: WeightHashes) -> tuple[object, ...]:
    """What of a base decides a concept."""
    sampling = model.get_model_object("model_sampling")
    return (
        hashes.weights_key(model),
        str(type(sampling).__mro__),
        sampling.sigmas,
        hashes.weights_key(clip.patcher),
        clip.layer_idx,
    )


def _learn(request: Request, photos: PreparedPhotos, progress: Progress, store: ResultStore) -> Concept:
    given = _encode(request, photos)
    model, clip, settings = request.model, request.clip, request.settings
    method = _with_prior(request.method, settings, model, clip, given, progress, store)
    # Their full memory is better spent on tuning, which holds its own copies; the sampler loads them again.
    unload(model, clip.patcher, request.vae.patcher)
    base = RunBase(model, clip, method, request.seed, request.trigger)
    return run_on(base, settings, given, progress, store)


def _with_prior(
    method: Method,
    settings: LoopSettings,
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    photos: LearnedPhotos,
    progress: Progress,
    store: ResultStore,
) -> Method:
    """The method with what it asks of the base beside photos."""
    height, width = photos.latents.shape[2:]
    key = _base_key(model, clip, store.hashes)
    method, fault = with_prior(method, settings, model, clip, (height, width), key, progress.drawing)
    if fault:
        progress.note(fault)
        logger.warning("E4T: %s", fault)
    return method


class Watcher(Protocol):
    """Who is told how far a run is."""

    def memory(self, plan: str) -> None:
        """How it uses memory, in a few words."""

    def step(self, report: StepReport) -> None:
        """The core's ``on_step``."""


def run_on(
    base: RunBase, settings: LoopSettings, given: LearnedPhotos, watcher: Watcher, store: ResultStore
) -> Concept:
    """The training loop, with the fastest memory plan that fits.

    Raises:
        TooLittleMemoryError, torch.OutOfMemoryError: as :func:`learn`; and what ``train`` raises.
    """
    with torch.inference_mode(False):
        device = base.model.load_device
        unet = ComfyUNet(base.model, compute_type(device))
        text = ComfyTextEncoder(base.clip, rounded=device.type != "cpu" and uses_autocast(device))
        hashes = store.hashes
        known = hashes.base_fingerprint(hashes.weights_key(base.model), unet.parameters())
        network = BaseModel(unet, text, known)
        text_key = content_key(hashes.weights_key(base.clip.patcher), base.clip.layer_idx)
        method = with_covariance(base.method, text, text_key, store)
        free = Free.now(unet.device)
        work = work_of(base.method, settings, unet, given.latents.shape[-1] * given.latents.shape[-2])

        def told(plan: MemoryPlan) -> str:
            return f"{plan.told()}, {free.told(need(plan, work))}"

        def run(plan: MemoryPlan) -> Concept:
            logger.info("E4T: %s.", told(plan))
            watcher.memory(told(plan))
            with bfloat16_products(unet.device):
                concept = train(method, network, given, settings, base.seed, base.trigger, watcher.step, plan)
            return dataclasses.replace(concept, base_name=file_name(base.model))

        return run_in_memory(plans_that_fit(settings, work, free), run, told)


def _encode(request: Request, photos: PreparedPhotos) -> LearnedPhotos:
    """What the networks make of the photos, once for the whole run."""
    check_cancelled()
    latents: Tensor = request.model.model.process_latent_in(request.vae.encode(photos.images))
    check_cancelled()
    features = None
    if request.loaded is not None:
        features = image_features(request.loaded.domain, request.loaded.clip_vision, photos.images)
        check_cancelled()
    with torch.inference_mode(False):
        return LearnedPhotos(
            latents.detach().float().cpu().clone(),
            None if features is None else features.clone(),
            None if photos.masks is None else photos.masks.clone(),
        )
