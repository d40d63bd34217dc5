"""Quick tunings of the tiny UNet, and how their results are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from tiny import TinyText, TinyUNet, tiny_domain, tiny_photos
from torch import Tensor

from e4t_core.concept import Concept
from e4t_core.memory_plan import FAST, MemoryPlan
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.method import E4T
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.methods.registered import SIBLINGS
from e4t_core.photos import Photos
from e4t_core.prior import PriorSibling
from e4t_core.run import BaseModel, Method, OnStep
from e4t_core.sibling import Sibling
from e4t_core.training import train
from e4t_core.unet import TextEncoder, UNet
from e4t_core.weight_changes import full_differences, shared_factors

# A large eps makes Adam's step smooth in the gradient; with 1e-8 its first step is the gradient's SIGN, and rounding
# decides it wherever a gradient is near zero.
SMOOTH = TuningSettings(steps=2, learning_rate=1e-2, batch=8, micro_batch=4, eps=1e-2)

METHODS = (E4T, *SIBLINGS)


def quick(kind: type[Method], **changes: Any) -> Any:
    """Settings of a method for a quick tuning."""
    if not issubclass(kind, Sibling):
        return dataclasses.replace(SMOOTH, **changes)
    values = {"steps": 2, "learning_rate": 1e-2, "batch": 8, "micro_batch": 4, "eps": 1e-2}
    if issubclass(kind, PriorSibling):
        values |= {"prior_weight": 0.7, "prior_pictures": 3}
    return kind.Settings(**(values | changes))


def method_of(kind: type[Method], unet: TinyUNet, settings: Any) -> Method:
    """A method for the tiny UNet, with all that it asks for."""
    if not issubclass(kind, Sibling):
        return E4T(tiny_domain(unet))
    method = kind("face")
    wanted = method.wanted_prior(settings) if isinstance(method, PriorSibling) else None
    if wanted is None:
        return method
    return method.with_prior(torch.randn((wanted.count, 4, 8, 8), generator=torch.Generator().manual_seed(4)))


def tune(
    unet: UNet,
    text: TextEncoder,
    domain: Domain,
    photos: Photos,
    settings: TuningSettings,
    seed: int,
    trigger: str = "S*",
    on_step: OnStep | None = None,
    base_fingerprint: str = "",
    plan: MemoryPlan = FAST,
) -> Concept:
    return train(E4T(domain), BaseModel(unet, text, base_fingerprint), photos, settings, seed, trigger, on_step, plan)


# Rounding to float16 moves a number by at most this share of it: differences are stored so.
ROUNDED = 2.0**-11


def run(
    settings: TuningSettings = SMOOTH, unet: TinyUNet | None = None, photos: Photos | None = None, seed: int = 1
) -> Concept:
    unet = unet or TinyUNet()
    return tune(unet, TinyText(), tiny_domain(unet), photos or tiny_photos(), settings, seed)


def differences(concept: Concept) -> dict[str, Tensor]:
    return {name: stored.value() for name, stored in full_differences(concept.weights).items()}


def factors(concept: Concept) -> dict[str, tuple[Tensor, Tensor]]:
    return shared_factors(concept.weights)


def tensors_of(concept: Concept) -> dict[str, Tensor]:
    tensors = {f"encoder.{key}": value for key, value in concept.predictor.encoder.state_dict().items()}
    tensors |= {f"difference.{key}": value for key, value in differences(concept).items()}
    return tensors | {"static": concept.embedding, "clip": concept.predictor.clip_features}


def identical(one: Concept, other: Concept) -> bool:
    a, b = tensors_of(one), tensors_of(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) and one.losses == other.losses


def close(one: Concept, other: Concept, atol: float) -> bool:
    """Up to float32's ``atol``, and up to the last place of the differences, which are rounded in each concept."""
    a, b = tensors_of(one), tensors_of(other)
    last_place = {key: 2 * ROUNDED if key.startswith("difference.") else 0 for key in a}
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], last_place[key], atol) for key in a)


def draws_with(concept: Concept, got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], atol: float) -> bool:
    """Whether weights are what they should be: up to float32's ``atol``, and what rounding the differences moves."""
    own = differences(concept)
    bounds = {name: atol + ROUNDED * own[name].abs() if name in own else atol for name in wanted}
    return all(bool(((got[name] - wanted[name]).abs() <= bounds[name]).all()) for name in wanted)


def tuned_weights(unet: TinyUNet, concept: Concept) -> dict[str, Tensor]:
    """As a host builds them: base, the domain's offset once, the concept's own difference."""
    weights = dict(unet.parameters())
    for name, (p, q) in factors(concept).items():
        weights[name] = weights[name] * (1 + p @ q.T)
    return {name: weight + differences(concept).get(name, 0) for name, weight in weights.items()}
