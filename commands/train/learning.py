"""From a folder of photos to a concept file, on a base model that diffusers reads."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from commands.concept.places import absolute, output_places
from commands.console import size as bytes_shown
from commands.progress import Progress
from e4t_core.concept import Concept
from e4t_core.crop import CROP_MARGIN
from e4t_core.files.concept_info import BODIES, EXACT, RECIPE, RECOVERABLE
from e4t_core.files.concept_saving import About, save_concept
from e4t_core.files.domain_file import load_domain
from e4t_core.files.file_name import checked_name
from e4t_core.files.prior_file import kept_prior
from e4t_core.fingerprint import fingerprint
from e4t_core.memory_need import candidates
from e4t_core.methods.e4t.clip_backbone import ClipBackbone, backbone_source, read_backbone_weights
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.hypernetwork import HyperNetwork, HyperNetworkSettings, check_form
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.methods.registered import OF_DOMAINS, SIBLINGS
from e4t_core.photos import Photos
from e4t_core.prior import GUIDANCE, STEPS, TEMPLATE, PriorSibling, draw_prior
from e4t_core.run import BaseModel, Method, StepReport
from e4t_core.settings import settings_of, with_changes
from e4t_core.training import train
from e4t_core.trigger import check_trigger
from e4t_core.version import VERSION

from .crops import AUTO, CROPS, MIDDLE, SUBJECT, finder, squares
from .photos import cut, read_photos

log = logging.getLogger(__name__)

METHODS: dict[str, Any] = {**{kind.name: kind for kind in OF_DOMAINS}, **{kind.name: kind for kind in SIBLINGS}}
SUFFIX = ".safetensors"
SIZE = 512
SWITCHES = {"true": True, "on": True, "false": False, "off": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument("method", choices=tuple(METHODS), metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--photos", type=absolute, required=True, metavar="FOLDER", help="of ONE person or thing")
    parser.add_argument(
        "--base", type=absolute, required=True, metavar="PATH", help="a .safetensors checkpoint, or a diffusers folder"
    )
    parser.add_argument("--out", type=absolute, required=True, metavar="FILE", help="the concept file to write")
    parser.add_argument("--domain", type=absolute, metavar="FILE", help="the domain file, for e4t and hypernetwork")
    parser.add_argument(
        "--backbone", type=absolute, metavar="FILE", help="the image backbone, where the domain file does not hold it"
    )
    parser.add_argument("--masks", type=absolute, metavar="FOLDER", help="pictures of the photos' names, white = learn")
    parser.add_argument(
        "--crop",
        choices=CROPS,
        default=AUTO,
        help="what the square follows that is learned of a photo without a mask; auto: the domain's subject, but in photos that are"
        " not square only (default: %(default)s)",
    )
    parser.add_argument(
        "--class-word", default="face", help="what the photos show (default: %(default)s); a domain has its own"
    )
    parser.add_argument("--trigger", default="S*", help="what stands for it in prompts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the learning (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=0, help=f"side of the photos' squares in pixels (default: {SIZE}, or the domain's)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the method")
    parser.add_argument("--keeps", choices=BODIES, default=EXACT, help="what the file keeps (default: %(default)s)")
    parser.add_argument(
        "--prior",
        type=absolute,
        metavar="FOLDER",
        help="where prior pictures are kept (default: e4t_prior beside --out)",
    )
    parser.add_argument("--device", default="", help="to compute on (default: cuda, or cpu)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of that name; else it gets a number")


def run(options: argparse.Namespace) -> None:
    """Learn and write.

    Raises:
        ValueError: a file, a folder, a word or a number cannot be used; one sentence.
    """
    name = checked_name(options.out.name.removesuffix(SUFFIX))
    check_trigger(options.trigger)
    domain = _domain(options)
    kind = METHODS[options.method]
    settings = _settings(kind.Settings() if domain is None else _preset(kind, domain), options.set)
    follows = _follows(options.crop, domain)
    size = options.size or (SIZE if domain is None else domain.info.image_size)
    if size % 64 or not 64 <= size <= 2048:
        raise ValueError(f"--size {size} must be a multiple of 64 from 64 to 2048.")
    photos = read_photos(options.photos, options.masks)
    places = output_places(options.out.parent)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    backbone = None if domain is None else _backbone(domain, options, device)
    base, coder = _base(options.base, device)
    method: Method = kind(options.class_word.strip() if domain is None else domain)
    margin = CROP_MARGIN if domain is None else domain.info.crop_margin
    find = None if domain is None or backbone is None else finder(domain, base, coder.encode, backbone, size)
    with _computing(base):
        found = squares(photos, follows, margin, find)
    images, masks = cut(photos, found, size)
    with torch.no_grad():
        latents = torch.cat([coder.encode(image[None].to(device)) for image in images]).float().cpu()
        features = None if backbone is None else backbone.cls_features(images.to(device)).float().cpu()
    method = _with_prior(method, settings, base, (latents.shape[2], latents.shape[3]), options)
    concept = _learned(method, base, Photos(latents, features, masks), settings, options)
    concept = dataclasses.replace(concept, base_name=options.base.name)
    about = About(created=datetime.now().astimezone().isoformat(timespec="seconds"), pack_version=VERSION)
    saved = save_concept(places, name, concept, options.keeps, about, options.overwrite)
    for note in concept.notes:
        log.warning("%s", note)
    log.info("Written: %s (%s)", saved.path, bytes_shown(saved.bytes))
    if saved.weights is not None:
        log.info("To share it, give both files: %s", saved.weights)
    if options.keeps == RECIPE:
        log.info("%s", RECOVERABLE)
    log.info("In prompts of ComfyUI, behind Load and Apply E4T Concept: %s", concept.trigger)


def _domain(options: argparse.Namespace) -> Domain | None:
    names = [kind.name for kind in OF_DOMAINS]
    if (options.method in names) != (options.domain is not None):
        instead = f"has no domain: leave --domain out, or choose {' or '.join(names)}"
        needs = "needs --domain FILE" if options.domain is None else instead
        raise ValueError(f"The method {options.method} {needs}.")
    if options.domain is None:
        return None
    domain = load_domain(options.domain)
    if options.method == HyperNetwork.name:
        # Before any work: the base alone takes a while.
        check_form(domain)
    return domain


def _preset(kind: Any, domain: Domain) -> TuningSettings:
    """The domain's; of a HyperNetwork, without its steps, as the node begins."""
    preset = domain.info.preset
    if kind is not HyperNetwork:
        return preset
    return HyperNetworkSettings.of(preset)


def _settings(preset: Any, changes: list[str]) -> Any:
    known, values = settings_of(type(preset)), {}
    for change in changes:
        name, given, text = change.partition("=")
        about = known.get(name)
        if not given or about is None:
            raise ValueError(f"--set {change!r} must be NAME=VALUE, with a name of {', '.join(known)}.")
        try:
            values[name] = SWITCHES[text.lower()] if about.kind is bool else about.kind(text)
        except (KeyError, ValueError) as error:
            raise ValueError(f"--set {change!r}: {name} must be {about.range_text()}.") from error
    return with_changes(preset, values)


def _base(path: Path, device: torch.device) -> tuple[BaseModel, Any]:
    """The base, and its autoencoder."""
    try:
        from commands.base.diffusers_base import load_base
    except ImportError as error:
        raise ValueError(
            f"A base model cannot be read without the package {error.name}: run this with the Python of the clone's .venv, which"
            " 'python3 dev.py train --help' makes."
        ) from error
    log.info("Reading %s.", path)
    loaded = load_base(path, device=device)
    return BaseModel(loaded.unet, loaded.text, fingerprint(loaded.unet.parameters())), loaded.vae


def _follows(crop: str, domain: Domain | None) -> str:
    """What the crop follows, where the domain can look for its subject or cannot."""
    if domain is None:
        if crop == SUBJECT:
            raise ValueError(f"--crop {SUBJECT} needs a domain that knows the subject: leave it out, or give --masks.")
        return MIDDLE
    # A domain of styles learns all of a picture.
    preset = domain.info.preset
    return MIDDLE if crop == AUTO and not (preset.use_mask and preset.find_subject) else crop


def _backbone(domain: Domain, options: argparse.Namespace, device: torch.device) -> ClipBackbone:
    info, state = domain.info.backbone, domain.backbone_state
    if state is None and options.backbone is None:
        source = backbone_source(info)
        raise ValueError(
            f"The domain file {options.domain.name} does not hold its image backbone: name that by --backbone FILE"
            f"{f' (it can be had from {source})' if source else ''}."
        )
    weights = read_backbone_weights(options.backbone, info) if state is None else state
    return ClipBackbone(info, weights, device)


def _with_prior(
    method: Method, settings: Any, base: BaseModel, size: tuple[int, int], options: argparse.Namespace
) -> Method:
    """The method with its prior pictures, which are drawn once for a base, a word, a seed and a size."""
    wanted = method.wanted_prior(settings) if isinstance(method, PriorSibling) else None
    if wanted is None:
        return method
    assert isinstance(method, PriorSibling)
    # What draws is another program than ComfyUI: its pictures have names of their own.
    described = json.dumps(["ddim", TEMPLATE, STEPS, GUIDANCE, wanted.word, wanted.seed, *size])
    said = base.text.encode([TEMPLATE], base.text.word(wanted.word)[None])
    key = fingerprint({"prompt": said, "empty": base.text.empty()}, described, base.fingerprint)
    folder = options.prior or options.out.parent / "e4t_prior"
    with Progress(total=len(wanted.groups()) * STEPS, desc="Prior pictures", leave=False) as bar, _computing(base):
        latents, fault = kept_prior(
            folder / f"{key[:40]}{SUFFIX}",
            wanted,
            size,
            lambda group: draw_prior(base, wanted, group, size, lambda: bar.update(1)),
        )
    if fault:
        log.warning("%s", fault)
    return method.with_prior(latents.float())


def _learned(method: Method, base: BaseModel, photos: Photos, settings: Any, options: argparse.Namespace) -> Concept:
    """The concept, by the first memory plan that fits."""
    plans = list(candidates(settings.memory, settings.micro_batch, settings.batch))
    with Progress(desc="Learning") as bar:

        def told(report: StepReport) -> None:
            bar.total = report.total
            if report.losses:
                bar.set_postfix(loss=f"{report.losses[-1]:.4f}", refresh=False)
            bar.update(report.done - bar.n)

        for plan in plans[:-1]:
            with contextlib.suppress(torch.OutOfMemoryError), _computing(base):
                return train(method, base, photos, settings, options.seed, options.trigger, told, plan)
            log.warning("Out of memory with the %s: a smaller one is tried.", plan.told())
            torch.cuda.empty_cache()
        with _computing(base):
            return train(method, base, photos, settings, options.seed, options.trigger, told, plans[-1])


def _computing(base: BaseModel) -> AbstractContextManager[object]:
    """Products in bfloat16 on a card; masters, sums and losses stay float32."""
    if base.unet.device.type != "cuda":
        return contextlib.nullcontext()
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)
