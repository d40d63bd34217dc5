"""What a wired MASK and a picture's transparency say about where to learn.

A mask here means 1 = learn here. ComfyUI's Load Image gives 1 where a picture is TRANSPARENT, so that a subject cut out of its
background comes with a mask that marks the background. Painting in its mask editor makes what is painted transparent, and
marks the subject. Both arrive as the same kind of tensor: only its shape, and what lies under it, tell them apart.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

AUTO, LEARN_HERE, LEAVE_OUT = "auto", "learn here", "leave out"
MASK_MEANINGS = (AUTO, LEARN_HERE, LEAVE_OUT)
"""What a wired mask's 1 may mean; "auto" is "learn here", unless :func:`marks_surroundings` holds."""

# All shares are of the photo, of its border or of one side. A normal mask that is turned round teaches the wrong thing, a
# turned-round one that is not recognized leaves everything as it was: so each limit asks for more than a cut-out shows.
BORDER = 0.02  # width of the border, as a share of the photo's shorter side
FULL = 0.95  # of a side, a corner or the border: covered
MOST = 0.7  # of the border, for a picture trimmed to its subject, which touches every side somewhere
SPARED = 0.2  # of the photo: a smaller hole may be glasses, a logo or a hand left out of a normal mask
EMPTY = 0.3  # of the middle ninth: the most that may be covered of what is spared
HALF = 0.5  # of the border, where all that is covered is of one color
ONE_COLOR = 2.5 / 255
SOLID = 0.99  # a cell that is wholly under the mask


def marks_surroundings(mask: Tensor, picture: Tensor) -> bool:
    """Whether a mask marks what is AROUND the subject: it covers the border and spares the middle.

    One of these must hold, of the mask as a share of its highest value:

    * The border is covered all around, and a fifth of the photo or more is spared: a cut-out, wherever it is.
    * The middle ninth and a fifth of the photo are spared, the four corners are covered and so is most of the border: a
      cut-out that was trimmed to its subject.
    * The middle ninth and a fifth of the photo are spared, one whole side is covered and so are the halves of its two
      neighbors beside it: a portrait that ends at the photo's edge.
    * Half of the border is covered, and the picture has one single color under all of the mask and more than that
      elsewhere: what a program wrote under transparent pixels. There would be nothing to learn from.

    A mask of a subject that fills the photo and touches its border fails all of them, because it covers the middle. So does
    one that covers all.

    Args:
        mask: ``(H, W)`` in [0, 1], not all zero.
        picture: ``(3, H, W)`` in [0, 1].
    """
    cover = mask / mask.max()
    width = max(1, round(BORDER * min(cover.shape)))
    border = torch.ones_like(cover, dtype=torch.bool)
    border[width:-width, width:-width] = False
    around = float(cover[border].mean())
    spared = float((cover < 0.5).float().mean())
    if around >= HALF and 0 < spared and _one_color_under(cover, picture):
        return True
    if spared < SPARED:
        return False
    if around >= FULL:
        return True
    height, length = cover.shape
    middle = cover[height // 3 : height - height // 3, length // 3 : length - length // 3]
    if float(middle.mean()) > EMPTY:
        return False
    corners = torch.stack([part.mean() for part in _corners(cover, 2 * width)])
    trimmed = around >= MOST and float(corners.min()) >= FULL
    return trimmed or any(_ends_at_a_side(torch.rot90(cover, turns), width) for turns in range(4))


def _corners(cover: Tensor, side: int) -> list[Tensor]:
    near, far = slice(0, side), slice(-side, None)
    return [cover[rows, columns] for rows in (near, far) for columns in (near, far)]


def _ends_at_a_side(cover: Tensor, width: int) -> bool:
    """Covered at the top and along the upper halves of left and right: what is spared is open below."""
    upper = cover.shape[0] // 2
    parts = (cover[:width], cover[:upper, :width], cover[:upper, -width:])
    return all(float(part.mean()) >= FULL for part in parts)


def _one_color_under(cover: Tensor, picture: Tensor) -> bool:
    under, elsewhere = cover >= SOLID, cover < 0.5
    if not under.any():
        return False

    def spread(where: Tensor) -> float:
        colors = picture[:, where]
        return float((colors.amax(dim=1) - colors.amin(dim=1)).max())

    return spread(under) <= ONE_COLOR < spread(elsewhere)


def fit(masks: Tensor, count: int, size: tuple[int, int]) -> Tensor:
    """Masks ``(n or 1, h, w)`` as ``(count, *size)`` in [0, 1]."""
    masks = masks.expand(count, -1, -1).clamp(0, 1)
    if masks.shape[-2:] != size:
        masks = F.interpolate(masks[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
    return masks
