"""Pictures of a tuning: the photos that are learned, what of them is left out, and the loss over the steps."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

PREVIEW = 256
DIM = 0.35  # brightness of what is not learned
INK, PAPER = (40, 90, 200), (250, 250, 250)


def loss_curve(losses: tuple[float, ...], size: int = PREVIEW) -> Image.Image:
    """A square picture of the loss over the optimizer steps; a flat or single-valued curve is a line in the middle."""
    picture = Image.new("RGB", (size, size), PAPER)
    draw = ImageDraw.Draw(picture)
    low, high = min(losses), max(losses)
    margin, span = size // 10, (high - low) or 1.0
    points = []
    for index, loss in enumerate(losses):
        x = margin + index * (size - 2 * margin) / max(len(losses) - 1, 1)
        height = (loss - low) / span if high > low else 0.5
        points.append((x, size - margin - height * (size - 2 * margin)))
    draw.line(points if len(points) > 1 else points * 2, fill=INK, width=3)
    draw.text((margin // 2, margin // 4), f"loss {losses[0]:.4f} -> {losses[-1]:.4f}", fill=INK)
    return picture


def dimmed(photos: Tensor, masks: Tensor) -> Tensor:
    """Photos ``(n, H, W, 3)`` in [0, 1], gray and dark where masks ``(n, 1, h, w)`` say that little is learned."""
    masks = masks.detach().float().cpu()
    shares = masks / masks.amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(masks.dtype).tiny)
    shares = F.interpolate(shares, size=photos.shape[1:3], mode="bilinear").movedim(1, -1)
    dark = photos.mean(dim=-1, keepdim=True) * DIM
    return dark + shares * (photos - dark)


def contact_sheet(photos: Tensor) -> Image.Image:
    """Photos ``(n, H, W, 3)`` in [0, 1] as one picture of width 256."""
    with torch.no_grad():
        arrays = (photos.detach().cpu().clamp(0, 1) * 255).round().byte().numpy()
    pictures = [Image.fromarray(np.ascontiguousarray(array)).resize((PREVIEW, PREVIEW)) for array in arrays]
    columns = 1 if len(pictures) == 1 else 2 if len(pictures) <= 4 else 4
    tile = PREVIEW // columns
    sheet = Image.new("RGB", (PREVIEW, tile * -(-len(pictures) // columns)), PAPER)
    for index, picture in enumerate(pictures):
        sheet.paste(picture.resize((tile, tile)), (index % columns * tile, index // columns * tile))
    return sheet


def beside(left: Image.Image | None, right: Image.Image) -> Image.Image:
    """Two pictures beside each other; the right one alone, if there is no other."""
    if left is None:
        return right
    both = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), PAPER)
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both


def with_curve(sheet: Image.Image, losses: tuple[float, ...]) -> Image.Image:
    """A contact sheet with the loss curve on its right, where there are steps enough for one."""
    if len(losses) < 2:
        return sheet
    return beside(sheet, loss_curve(losses))


def thumbnail_uri(pictures: Tensor) -> str:
    """The first of some pictures ``(n, H, W, C)`` in [0, 1] as a small JPEG in a data URI, as model libraries show it."""
    with torch.no_grad():
        array = (pictures[0, ..., :3].detach().float().cpu().clamp(0, 1) * 255).round().byte().numpy()
    picture = Image.fromarray(np.ascontiguousarray(array))
    picture.thumbnail((PREVIEW, PREVIEW))
    return jpeg_uri(picture)


def jpeg_uri(picture: Image.Image) -> str:
    """A picture as a JPEG in a data URI, 5 to 20 kB at the size of a preview."""
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"
