"""Concepts (made once each) as small as they may be for a file, whose words have a Stable Diffusion's width, and how two are compared."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import torch
from tiny import TinyText, TinyUNet, tiny_domain, tiny_photos
from torch import Tensor

from e4t_core.concept import Concept
from e4t_core.files.concept_saving import Places
from e4t_core.files.concept_tensors import parts_of
from e4t_core.loop_settings import SamplingSettings
from e4t_core.memory_plan import BALANCED
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.method import E4T
from e4t_core.methods.e4t.offset_forms import make_offsets
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.methods.extended_textual_inversion import ExtendedTextualInversion, ExtendedTextualInversionSettings
from e4t_core.methods.perfusion import Perfusion, PerfusionSettings
from e4t_core.methods.textual_inversion import TextualInversion, TextualInversionSettings
from e4t_core.mix import mix
from e4t_core.photos import Photos
from e4t_core.recipe import Recipe
from e4t_core.run import BaseModel
from e4t_core.training import train
from e4t_core.weight_changes import full_differences, shared_factors

WIDTH = 768
QUICK = TuningSettings(steps=2, learning_rate=1e-2, batch=4, micro_batch=2, eps=1e-2)


def base(width: int = WIDTH, attentions: int = 1) -> BaseModel:
    prediction = "epsilon" if width == WIDTH else "v"
    return BaseModel(TinyUNet(prediction=prediction, context=width, attentions=attentions), TinyText(width))


def domain_of(form: str, model: BaseModel) -> Domain:
    plain = tiny_domain(model.unet)
    width = plain.info.backbone.width if form == "hypernetwork" else 1
    offsets = make_offsets(form, plain.info.projections, width)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in offsets.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return Domain(plain.encoder, offsets, dataclasses.replace(plain.info, v_size=width, offset_form=form))


@functools.cache
def e4t(
    photos: Photos | None = None,
    form: str = "network",
    seed: int = 1,
    settings: TuningSettings = QUICK,
    width: int = WIDTH,
    trigger: str = "S*",
) -> Concept:
    model = base(width)
    concept = train(E4T(domain_of(form, model)), model, photos or tiny_photos(), settings, seed, trigger, plan=BALANCED)
    return dataclasses.replace(concept, base_name="tiny.safetensors", notes=("A note.", "Two\nlines."))


@functools.cache
def inverted(vectors: int = 1, photos: Photos | None = None, width: int = WIDTH, seed: int = 1) -> Concept:
    settings = TextualInversionSettings(steps=2, batch=4, vectors=vectors)
    return train(TextualInversion("face"), base(width), photos or tiny_photos(), settings, seed, "<my toy>")


@functools.cache
def by_layers(vectors: int = 1, width: int = WIDTH) -> Concept:
    settings = ExtendedTextualInversionSettings(steps=2, batch=4, vectors=vectors)
    return train(ExtendedTextualInversion("face"), base(width, 3), tiny_photos(), settings, 1, "<my toy>")


@functools.cache
def edited(width: int = WIDTH) -> Concept:
    known = torch.eye(width, dtype=torch.float64)
    settings = PerfusionSettings(steps=2, batch=4)
    return train(Perfusion("face", covariance=known), base(width, 3), tiny_photos(), settings, 1, "<my toy>")


@functools.cache
def mixed() -> Concept:
    return mix([e4t(seed=1), e4t(seed=2, photos=tiny_photos(seed=5))], [1.0, 3.0], "M*")


def word_only(value: float, fingerprint: str) -> Concept:
    """A concept of one word, all of whose numbers are one value: what was read of it tells which it is."""
    return Concept(
        trigger="S*",
        method="textual_inversion",
        fingerprint=fingerprint,
        base_fingerprint="b",
        embedding=torch.full((1, WIDTH), value),
        weights=(),
        settings=TextualInversionSettings(),
        seed=0,
    )


def places(folder: Path) -> Places:
    found = Places(folder / "embeddings" / "e4t", folder / "e4t_concepts")
    for one in (found.words, found.weights):
        one.mkdir(parents=True, exist_ok=True)
    return found


def tensors_of(concept: Concept) -> dict[str, Tensor]:
    """All tensors of a concept by name, as it holds them."""
    found = {"embedding": concept.embedding}
    if concept.start is not None:
        found["start"] = concept.start
    if concept.attention is not None:
        layers = " ".join(concept.attention.layers)
        found |= {f"attention {n} {layers}": tensor for n, tensor in enumerate(concept.attention.tensors())}
    for name, stored in full_differences(concept.weights).items():
        found |= {f"full.{name}": stored.values, f"scale.{name}": torch.tensor(stored.scale)}
    for name, (p, q) in shared_factors(concept.weights).items():
        found |= {f"p.{name}": p, f"q.{name}": q}
    for number, (part, share) in enumerate(parts_of(concept.predictor)):
        found |= {f"{number}.{key}": value for key, value in part.encoder.state_dict().items()}
        found |= {
            f"{number}.clip": part.clip_features,
            f"{number}.domain_word": part.domain_word_embedding,
            f"{number}.numbers": torch.tensor([share, part.scale], dtype=torch.float64),
        }
    return found


def photos_of(recipe: Recipe) -> dict[str, Tensor]:
    named = {name: getattr(recipe.photos, name) for name in ("latents", "clip_features", "masks")}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """The same names, types, shapes and bits."""
    return one.keys() == other.keys() and all(
        part.dtype == other[name].dtype and torch.equal(part, other[name]) for name, part in one.items()
    )


def texts_of(concept: Concept) -> dict[str, object]:
    """All of a concept that is no tensor."""
    kept = ("weights", "predictor", "attention", "embedding", "start", "recipe", "to_learn")
    return {field.name: getattr(concept, field.name) for field in dataclasses.fields(concept) if field.name not in kept}


OTHER_SAMPLING = SamplingSettings(refine=True, start_percent=0.1, end_percent=0.7, refine_every=3, share_pass=False)
