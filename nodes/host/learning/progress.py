"""What a person sees while a node works: progress bar, preview picture, text on the node; and the cancel button."""

from __future__ import annotations

import logging

import comfy.model_management
import numpy as np
import torch
import torch.nn.functional as F
from comfy_api.latest import ComfyAPISync
from comfy_execution.utils import get_executing_context
from PIL import Image, ImageDraw
from torch import Tensor

from ....e4t_core.training import StepReport

logger = logging.getLogger(__name__)

PREVIEW = 256
DIM = 0.35  # brightness of what is not learned
INK, PAPER = (40, 90, 200), (250, 250, 250)


def show_text(text: str) -> None:
    """Show a text on the node that is executing, if there is a browser to see it."""
    context = get_executing_context()
    if context is None:
        return
    try:
        from server import PromptServer
    except ImportError:
        return
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, context.node_id)


class Progress:
    """The progress of one tuning; its :meth:`step` is the core's ``on_step``.

    Args:
        photos: ``(n, H, W, 3)`` in [0, 1], as they are learned from: the node's first preview.
    """

    def __init__(self, photos: Tensor) -> None:
        self._tensor = photos.detach().float().cpu()
        self._photos = _contact_sheet(self._tensor)
        self._dimmed = False

    def show_photos(self) -> None:
        """The first preview: what is learned from, after the crop."""
        self._send(0, 1, self._photos)

    def step(self, report: StepReport) -> None:
        """Advance the bar; the preview beside the photo is the loss so far, and what is not learned of the photo is dim.

        Raises:
            InterruptProcessingException: the person has cancelled. It is no ``Exception``: clean up in ``finally``.
        """
        picture = None
        if report.masks is not None and not self._dimmed:
            self._dimmed, self._photos = True, _contact_sheet(dimmed(self._tensor, report.masks))
            picture = self._photos
        if report.micro == report.micros:
            picture = _beside(self._photos, loss_curve(report.losses)) if len(report.losses) > 1 else self._photos
        self._send(report.done, report.total, picture)
        check_cancelled()

    def _send(self, value: int, maximum: int, picture: Image.Image | None) -> None:
        if get_executing_context() is not None:
            ComfyAPISync().execution.set_progress(value, max(maximum, 1), preview_image=picture)


def check_cancelled() -> None:
    """Raise ComfyUI's InterruptProcessingException if the person has cancelled."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def loss_curve(losses: tuple[float, ...], size: int = PREVIEW) -> Image.Image:
    """A square picture of the loss over the optimiser steps; a flat or single-valued curve is a line in the middle."""
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
    """Photos ``(n, H, W, 3)`` in [0, 1], grey and dark where masks ``(n, 1, h, w)`` say that little is learned."""
    masks = masks.detach().float().cpu()
    shares = masks / masks.amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(masks.dtype).tiny)
    shares = F.interpolate(shares, size=photos.shape[1:3], mode="bilinear").movedim(1, -1)
    dark = photos.mean(dim=-1, keepdim=True) * DIM
    return dark + shares * (photos - dark)


def _contact_sheet(photos: Tensor) -> Image.Image:
    with torch.no_grad():
        arrays = (photos.detach().cpu().clamp(0, 1) * 255).round().byte().numpy()
    pictures = [Image.fromarray(np.ascontiguousarray(array)).resize((PREVIEW, PREVIEW)) for array in arrays]
    columns = 1 if len(pictures) == 1 else 2 if len(pictures) <= 4 else 4
    tile = PREVIEW // columns
    sheet = Image.new("RGB", (PREVIEW, tile * -(-len(pictures) // columns)), PAPER)
    for index, picture in enumerate(pictures):
        sheet.paste(picture.resize((tile, tile)), (index % columns * tile, index // columns * tile))
    return sheet


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), PAPER)
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both
