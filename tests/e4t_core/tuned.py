"""Quick tunings of the tiny UNet, and how their results are compared."""

from __future__ import annotations

import torch
from tiny import TinyText, TinyUNet, tiny_domain, tiny_photos
from torch import Tensor

from e4t_core.concept import Concept
from e4t_core.presets import TuningSettings
from e4t_core.tuning import ConceptPhotos, tune

# A large eps makes Adam's step smooth in the gradient; with 1e-8 its first step is the gradient's SIGN, and rounding
# decides it wherever a gradient is near zero.
SMOOTH = TuningSettings(steps=2, learning_rate=1e-2, batch=8, micro_batch=4, eps=1e-2)


def run(
    settings: TuningSettings = SMOOTH, unet: TinyUNet | None = None, photos: ConceptPhotos | None = None, seed: int = 1
) -> Concept:
    unet = unet or TinyUNet()
    return tune(unet, TinyText(), tiny_domain(unet), photos or tiny_photos(), settings, seed)


def tensors_of(concept: Concept) -> dict[str, Tensor]:
    tensors = {f"encoder.{key}": value for key, value in concept.encoder.state_dict().items()}
    tensors |= {f"difference.{key}": value for key, value in concept.weight_differences.items()}
    return tensors | {"static": concept.static_embedding, "clip": concept.clip_features}


def identical(one: Concept, other: Concept) -> bool:
    a, b = tensors_of(one), tensors_of(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) and one.losses == other.losses


def close(one: Concept, other: Concept, atol: float) -> bool:
    a, b = tensors_of(one), tensors_of(other)
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], rtol=0, atol=atol) for key in a)


def tuned_weights(unet: TinyUNet, concept: Concept) -> dict[str, Tensor]:
    """As a host builds them: base, the domain's offset once, the concept's own difference."""
    weights = dict(unet.parameters())
    for name, (p, q) in concept.domain_factors.items():
        weights[name] = weights[name] * (1 + p @ q.T)
    return {name: weight + concept.weight_differences.get(name, 0) for name, weight in weights.items()}
