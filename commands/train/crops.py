"""Which square of each photo is learned: around its mask, where the domain finds its subject, or in the middle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from commands.progress import Progress
from e4t_core.crop import Square
from e4t_core.methods.e4t.clip_backbone import ClipBackbone
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.redrawing import AT_ONCE
from e4t_core.methods.e4t.subject_finding import coarse_size, find_subjects
from e4t_core.run import BaseModel
from e4t_core.subject_search import Subject, chosen, framed, is_portrait

from .photos import Photo, cut

log = logging.getLogger(__name__)

AUTO, SUBJECT, MIDDLE = CROPS = ("auto", "subject", "middle")
"""As *crop* of E4T Personalize: the subject where a photo is not square; the subject; nothing."""

Find = Callable[[Photo], Sequence[Subject] | None]
"""The subjects of a photo, from left to right; none at all where there was too little memory to look for them."""


def squares(photos: Sequence[Photo], follows: str, margin: float, find: Find | None) -> list[Square]:
    """The square of each photo. Its mask decides; then the largest subject that is found; else it is the middle.

    Args:
        photos: whole.
        follows: one of ``CROPS``.
        margin: room on each side of a mask's box, as a share of its longer side.
        find: finds subjects; none where nothing can.
    """
    looked_at = [photo for photo in photos if find is not None and photo.mask is None and _looks(photo, follows)]
    found: dict[Photo, Square] = {}
    for photo in Progress(looked_at, desc="Looking for the subject", leave=False) if looked_at else ():
        assert find is not None
        subjects = find(photo)
        best = chosen(subjects or (), 0)
        if best is not None:
            square = found[photo] = framed(photo.size, best)
            log.info("%s: learned from %d pixels from (%d, %d) on.", photo.file, square.side, square.left, square.top)
        elif subjects is None:
            log.warning("%s: there is too little memory to look for the subject, so its middle is learned.", photo.file)
        else:
            log.warning("%s: no subject was found, so its middle is learned; a mask says where it is.", photo.file)
        if subjects is not None and len(subjects) > 1:
            log.warning("%s: %d subjects were found; the largest is learned.", photo.file, len(subjects))
    return [found.get(photo) or photo.usual_square(margin) for photo in photos]


def _looks(photo: Photo, follows: str) -> bool:
    return follows == SUBJECT or (follows == AUTO and not is_portrait(photo.size))


def finder(
    domain: Domain, base: BaseModel, encode: Callable[[Tensor], Tensor], backbone: ClipBackbone, size: int
) -> Find:
    """What looks for the domain's subject.

    Args:
        domain: untuned.
        base: the networks.
        encode: images ``(n, 3, S, S)`` in [0, 1] to latents.
        backbone: the domain's.
        size: side in pixels that is learned from.
    """

    def find(photo: Photo) -> Sequence[Subject] | None:
        view = _View(photo, coarse_size(size), encode, backbone, base.unet.device)
        for at_once in (AT_ONCE, 1):
            try:
                return find_subjects(domain, base.unet, base.text, view, photo.size, size, at_once=at_once)
            except torch.OutOfMemoryError:
                log.info("Out of memory while looking at %d squares of %s at once.", at_once, photo.file)
        return None

    return find


class _View:
    """A photo as the networks see squares of it."""

    def __init__(
        self,
        photo: Photo,
        size: int,
        encode: Callable[[Tensor], Tensor],
        backbone: ClipBackbone,
        device: torch.device,
    ) -> None:
        self._photo, self._size, self._encode, self._backbone, self._device = photo, size, encode, backbone, device

    def _cut(self, places: Sequence[Square]) -> Tensor:
        return cut([self._photo] * len(places), places, self._size)[0].to(self._device)

    def latents(self, places: Sequence[Square]) -> Tensor:
        return self._encode(self._cut(places)).float()

    def clip_features(self, places: Sequence[Square]) -> Tensor:
        return self._backbone.cls_features(self._cut(places)).float()
