"""The domain looks for its subject in a whole photo, on whatever networks it is tuned on."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...crop import middle_square
from ...subject_search import Subject, search
from ...unet import TextEncoder, UNet
from .domain import Domain
from .method import check_fits
from .redrawing import AT_ONCE, Redrawing, View
from .word_model import WordModel

# Squares are looked at in half the size that is learned from, but not smaller than networks see anything in.
COARSE, LEAST_SIZE = 0.5, 128
# Of the size that they are looked at in: a smaller square would be enlarged to nothing but blur.
SMALLEST = 0.25


def coarse_size(image_size: int) -> int:
    """Side in pixels that squares are looked at in, where so many are learned."""
    return min(image_size, max(LEAST_SIZE, round(COARSE * image_size) // 64 * 64))


@torch.no_grad()
def find_subjects(
    domain: Domain,
    unet: UNet,
    text: TextEncoder,
    view: View,
    photo_size: tuple[int, int],
    image_size: int,
    on_pass: Callable[[], object] = lambda: None,
    at_once: int = AT_ONCE,
) -> list[Subject]:
    """The subjects of a photo, from left to right; none where nothing convinces.

    Args:
        domain: untuned; it is copied where it has to be moved.
        unet: the base's.
        text: the base's.
        view: shows squares of the photo in :func:`coarse_size` pixels.
        photo_size: (height, width) in pixels.
        image_size: side in pixels that is learned from.
        on_pass: called after every pass of the UNet; whatever it raises passes through.
        at_once: how many squares pass the UNet together.

    Raises:
        DomainMismatchError: the domain was made for another base.
        TuningError: it reads other features than the view's.
    """
    middle = view.clip_features([middle_square(photo_size)])
    check_fits(domain, unet, text, middle)
    offsets = domain.offsets.fixed(middle.cpu())
    weights = unet.parameters()
    lent = {name: offsets.apply(name, weights[name].float().cpu()) for name in domain.offsets.names}
    encoder = domain.encoder.blank()
    # Copies: a domain that was read in inference mode, as ComfyUI's nodes read it, cannot be given to a module outside of it.
    state = {
        name: value.detach().to(unet.device, torch.float32, copy=True)
        for name, value in domain.encoder.state_dict().items()
    }
    encoder.load_state_dict(state, assign=True)
    info = domain.info
    with unet.using(lent):
        words = WordModel.of(unet, text, encoder.eval(), info.word, info.scale, info.templates)
        smallest = round(SMALLEST * coarse_size(image_size))
        return search(photo_size, smallest, Redrawing(words, view, on_pass, at_once))
