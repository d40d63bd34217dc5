"""What two implementations of one base model must agree on: the same inputs, and what each makes of them."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from e4t_core.diffusion import DiffusionSample
from e4t_core.files.checked_file import read_header, read_tensors, write_tensors
from e4t_core.files.file_errors import FileKind
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.domain_info import check_base
from e4t_core.methods.e4t.word_model import WordModel

TEMPLATES = ("a photo of {}", "a painting of {}'s face, in Paris")
WORD = "face"
"""In prompts where there is no domain."""
FILE = FileKind("File of measured values")
FACTS = "facts"


@dataclass(frozen=True, eq=False)
class Side:
    """What one implementation says to the same inputs.

    Attributes:
        facts: what must be equal.
        values: what must be near.
        seconds: that it took.
    """

    facts: dict[str, Any]
    values: dict[str, Tensor]
    seconds: float


def measure(unet: Any, text: Any, encode: Callable[[Tensor], Tensor], domain: Domain | None) -> Side:
    """Everything of a side that must agree.

    Args:
        unet, text: the core's two protocols.
        encode: images ``(B, 3, H, W)`` in [0, 1] -> latents in the UNet's scale.
        domain: made for this base, here or on the other side; none: what needs one is left out.

    Raises:
        DomainMismatchError: the domain was made for another base.
    """
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(2, 4, 8, 8, generator=generator)
    t = torch.tensor([30, 750])
    noise = torch.randn(2, 4, 8, 8, generator=generator)
    images = torch.rand(1, 3, 64, 64, generator=generator)
    with torch.inference_mode(False), torch.no_grad():
        if domain is not None:
            check_base(domain.info, text.width, unet.prediction, unet.feature_width, unet.attention_projections())
        word = text.word(WORD if domain is None else domain.info.word)
        context, empty = text.encode(TEMPLATES, torch.stack([word, 1.5 * word])), text.empty()
        weights = unet.parameters()
        values = {
            "word embedding": word,
            "context of prompts": context,
            "context of the empty prompt": empty,
            "schedule": unet.schedule.alphas_cumprod,
            "latent of an image": encode(images),
            "denoise": unet.denoise(z, t, context),
            "features": unet.features(z, t, empty.expand(2, -1, -1)),
        }
        if domain is not None:
            shape = 2, domain.info.backbone.vectors, domain.info.backbone.width
            clip_features = torch.randn(shape, generator=generator)
            lent = domain.offsets.apply_all(weights)
            # One number for each matrix and its offset, which a transposed or misnamed one would change.
            values["offset matrices"] = torch.stack([_probe(name, lent[name], weights[name]) for name in sorted(lent)])
            with unet.using(lent):
                values["denoise with offsets"] = unet.denoise(z, t, context)
                values["features with offsets"] = unet.features(z, t, empty.expand(2, -1, -1))
                words = WordModel(unet, text, domain.encoder, word, domain.info.scale, empty, TEMPLATES)
                losses = words.losses(z, clip_features, DiffusionSample(t, noise, (0, 1), torch.zeros(2).long()))
                values["word offset E"] = words.offset(z, t, clip_features)
            values["training loss"] = losses.diffusion
        facts = {
            "prediction": unet.prediction,
            "feature width": unet.feature_width,
            "parameters": {name: list(weight.shape) for name, weight in weights.items()},
            "matrices with offsets": {name: list(shape) for name, shape in unet.attention_projections().items()},
        }
    copies = {name: value.detach().float().cpu().clone() for name, value in values.items()}
    return Side(facts, copies, time.perf_counter() - started)


def _probe(name: str, lent: Tensor, base: Tensor) -> Tensor:
    """``aᵀ (lent − base) b`` for random unit vectors that belong to the name; 0 where the offset is 0."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    rows, columns = (torch.randn(size, generator=generator) for size in base.shape)
    change = (lent - base).float().cpu()
    return rows @ change @ columns / change.norm().clamp(min=1e-12)


def difference(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference of two tensors; infinite if shapes differ or one is not finite."""
    if one.shape != other.shape or not torch.isfinite(one).all() or not torch.isfinite(other).all():
        return float("inf")
    return float((one - other).abs().max())


def share(one: Tensor, other: Tensor) -> float:
    """:func:`difference` as a share of the first one's root mean square, so that values of any size can be judged alike."""
    found = difference(one, other)
    return found / max(float(one.square().mean().sqrt()), 1e-12) if found else 0.0


def odd_facts(one: Side, other: Side) -> list[str]:
    """Names of the facts that differ."""
    return [name for name, value in one.facts.items() if value != other.facts.get(name)]


def save_side(path: Path, side: Side) -> None:
    """Writes a side to a file, for another process."""
    facts = {FACTS: json.dumps({"facts": side.facts, "seconds": side.seconds})}
    write_tensors(path, {name: value.contiguous() for name, value in side.values.items()}, facts, FILE)


def load_side(path: Path) -> Side:
    """Reads what :func:`save_side` wrote.

    Raises:
        FileError: it is not there, or damaged.
    """
    header = read_header(path, FILE)
    told = json.loads(header.metadata[FACTS])
    return Side(told["facts"], read_tensors(path, header.tensors, FILE), told["seconds"])
