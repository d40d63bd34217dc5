"""From a tuned directory of mkshing's files to a concept, on a base model at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from e4t_core.concept import Concept
from e4t_core.files.file_errors import shown
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.method import E4T
from e4t_core.photos import Photos
from e4t_core.run import BaseModel, OnStep
from e4t_core.training import train
from e4t_core.unet import TextEncoder, UNet

from .mkshing_directory import DIRECTORY, MkshingDirectory
from .mkshing_tensors import FILE

CONVERTED = "It was tuned by mkshing/e4t-diffusion and converted; nothing was trained here."
WITH_TEXT = "Its text encoder was tuned too: wire Load CLIP with that one in place of the checkpoint's CLIP."


def to_concept(
    source: MkshingDirectory,
    domain: Domain,
    unet: UNet,
    text: TextEncoder,
    photos: Photos,
    *,
    trigger: str = "",
    seed: int = 0,
    on_step: OnStep | None = None,
) -> Concept:
    """The concept of a tuned directory: its weights are ``W * (1 + Δ)`` with the W of ``unet.pt``.

    Nothing is trained: the static word embedding alone is computed, as for every concept, over noise levels of the
    photo(s). ``settings.steps`` is therefore 0; how it was tuned is in ``domain.info.training``. It has no recipe where nothing
    here could learn it again: with a tuned UNet or text encoder.

    Args:
        source: a tuned directory.
        domain: made from the same directory by :func:`~.to_domain.to_domain`, so that its Δ is the tuned one.
        unet, text: the base model that was tuned, untouched; where ``source.text_encoder`` is, the text encoder must be
            that one.
        photos: of the concept (the directory's ``domain.png``), their CLIP vectors read as ``domain`` says.
        trigger: what the concept is called; else the directory's placeholder ("*s").
        seed: of the noise levels.
        on_step: told of progress, see ``training.train``.

    Raises:
        MkshingFileError: the directory is not a tuned one, or its UNet is not the base's.
        DomainMismatchError, WordError, TuningError: as ``E4T.start`` and ``E4TRun.concept``.
    """
    check_tuned(source)
    _check_same_unet(source, unet.parameters())
    settings = dataclasses.replace(
        domain.info.preset, steps=0, train_encoder=False, train_offsets=False, train_unet=False
    )
    # Early directories hold tuned offsets only: their W is the base's.
    method, called = E4T(domain, source.unet), trigger or source.config.placeholder
    concept = train(method, BaseModel(unet, text), photos, settings, seed, called, on_step)
    retuned = source.text_encoder is not None
    notes = (*concept.notes, CONVERTED, *([WITH_TEXT] if retuned else []))
    return dataclasses.replace(concept, notes=notes, recipe=None if source.unet or retuned else concept.recipe)


def check_tuned(source: MkshingDirectory) -> None:
    """Check that a directory holds a concept.

    Raises:
        MkshingFileError: it is pre-trained, not tuned.
    """
    if not source.config.tuned:
        raise DIRECTORY.fault(
            source.path,
            "is pre-trained, not tuned (config.json has no pretrained_args), so it holds no concept",
            "convert it to a domain and personalize that",
        )


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
