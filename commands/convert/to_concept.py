"""From a tuned directory of mkshing's files to a concept in memory, on a base model at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from e4t_core.concept import Concept
from e4t_core.files.checked_file import shown
from e4t_core.fingerprint import fingerprint
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.weight_offsets import offset_weight
from e4t_core.noise_schedule import NoiseSchedule, Prediction
from e4t_core.tuning import ConceptPhotos, tune
from e4t_core.unet import TextEncoder, UNet

from .mkshing_directory import DIRECTORY, MkshingDirectory
from .mkshing_tensors import FILE


def to_concept(
    source: MkshingDirectory,
    domain: Domain,
    unet: UNet,
    text: TextEncoder,
    photos: ConceptPhotos,
    *,
    word: str = "",
    seed: int = 0,
) -> Concept:
    """The concept of a tuned directory: its weights are ``W * (1 + Δ)`` with the W of ``unet.pt``.

    Nothing is trained: the static word embedding alone is computed, as for every concept, over noise levels of the
    photo(s). ``settings.steps`` is therefore 0; how it was tuned is in ``domain.info.training``.

    Args:
        source: a tuned directory.
        domain: made from the same directory by :func:`~.to_domain.to_domain`, so that its Δ is the tuned one.
        unet, text: the base model that was tuned, untouched; where ``source.text_encoder`` is, the text encoder must be
            that one.
        photos: of the concept (the directory's ``domain.png``), their CLIP vectors read as ``domain`` says.
        word: what the concept is called; else the directory's placeholder ("*s").
        seed: of the noise levels.

    Raises:
        MkshingFileError: the directory is not a tuned one, or its UNet is not the base's.
        DomainMismatchError, WordError, TuningError: as ``e4t_core.tuning.tune``.
    """
    if not source.config.tuned:
        raise DIRECTORY.fault(
            source.path,
            "is pre-trained, not tuned (config.json has no pretrained_args), so it holds no concept",
            "convert it to a domain and personalize that",
        )
    base = unet.parameters()
    _check_same_unet(source, base)
    with torch.inference_mode(False), torch.no_grad():
        # W where the file has one: early directories hold tuned offsets only.
        tuned = {name: source.unet.get(name, weight).to(weight.device, torch.float32) for name, weight in base.items()}
        settings = dataclasses.replace(
            domain.info.preset, steps=0, train_encoder=False, train_offsets=False, train_unet=False
        )
        concept = tune(_Retuned(unet, tuned), text, domain, photos, settings, seed, word or source.config.placeholder)
        return dataclasses.replace(
            concept,
            base_fingerprint=fingerprint(base),
            weight_differences=_differences(base, tuned, concept.domain_factors),
        )


class _Retuned:
    """A base UNet that shows other weights as its own; see the core's protocol."""

    def __init__(self, unet: UNet, weights: Mapping[str, Tensor]) -> None:
        self._unet, self._weights = unet, dict(weights)

    @property
    def prediction(self) -> Prediction:
        return self._unet.prediction

    @property
    def schedule(self) -> NoiseSchedule:
        return self._unet.schedule

    @property
    def feature_width(self) -> int:
        return self._unet.feature_width

    def parameters(self) -> dict[str, Tensor]:
        return dict(self._weights)

    def attention_projections(self) -> dict[str, tuple[int, int]]:
        return self._unet.attention_projections()

    def using(self, weights: Mapping[str, Tensor]) -> AbstractContextManager[object]:
        return self._unet.using({**self._weights, **weights})

    def denoise(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self._unet.denoise(z, t, context)

    def features(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self._unet.features(z, t, context)


def _check_same_unet(source: MkshingDirectory, base: Mapping[str, Tensor]) -> None:
    if not source.unet:
        return
    names = source.unet.keys() | base.keys()
    wrong = sorted(
        name
        for name in names
        if name not in source.unet or name not in base or source.unet[name].shape != base[name].shape
    )
    if wrong:
        held, wanted = source.unet.get(wrong[0]), base.get(wrong[0])
        raise FILE.fault(
            source.path / "unet.pt",
            f"is not the UNet of this base model ({len(wrong)} tensors differ, the first is {wrong[0]}:"
            f" {'missing' if held is None else tuple(held.shape)} in place of"
            f" {'none' if wanted is None else tuple(wanted.shape)})",
            f"load the base model {shown(source.config.base)}",
        )


def _differences(
    base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Tuned weight − (base + domain offset), float32 on the CPU; only tensors that changed."""
    differences = {}
    for name, weight in base.items():
        before, after = weight.float(), tuned[name]
        if name in factors:
            p, q = (factor.to(after.device) for factor in factors[name])
            before, after = offset_weight(before, p, q), offset_weight(after, p, q)
        if (difference := after - before).any():
            differences[name] = difference.cpu()
    return differences
