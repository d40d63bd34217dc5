"""What a person sees while a node learns: progress bar, preview, text and panel on the node; and the cancel button."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, final

import comfy.model_management
from comfy_api.latest import ComfyAPISync
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor

from ....e4t_core.concept import Concept
from ....e4t_core.run import StepReport
from .. import live_view
from ..node_text import show_text
from .panel import CANCELLED, FAILED, KNOWN, LEARNED, LearningPanel
from .pictures import beside, contact_sheet, dimmed, with_curve

if TYPE_CHECKING:
    from .previews import Previews

# Seconds between two texts that differ in the time left only.
PATIENCE = 1.0
# Characters of an error's first line; the whole is in the log and in ComfyUI's own dialog.
LONGEST = 300


@final
class Progress:
    """One run of a node that learns, as a ``with`` block: whatever ends it is said on the node.

    Its :meth:`step` is the core's ``on_step``.

    Args:
        trigger: what is learned is called so.
    """

    def __init__(self, trigger: str) -> None:
        self._trigger = trigger
        self._notes: tuple[str, ...] = ()
        self._early: tuple[str, ...] = ()
        self._told: tuple[str, ...] = ()
        self._memory: tuple[str, ...] = ()
        self._photos: Tensor | None = None
        self._overview: Image.Image | None = None
        self._dimmed = False
        self._place = ""
        self._said_at = 0.0
        self._began = time.monotonic()
        self._since: tuple[float, int] | None = (
            None  # when, and after how many micro-batches, steps began to be counted
        )
        self.sheet: Image.Image | None = None
        """The photos as they are learned, dark where they are not: the preview, once there is one."""
        self.said: list[str] = []
        """The lines that the node shows now."""
        self.previews: Previews | None = None
        """Looks at what would be drawn, if any."""
        self.panel = LearningPanel(trigger)
        """What the browser draws of it."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        place = f" {self._place}" if self._place else ""
        if isinstance(error, comfy.model_management.InterruptProcessingException):
            self.panel.state = CANCELLED
            self._say(f"{self._trigger}: cancelled{place}.")
        elif isinstance(error, Exception):
            self.panel.state = FAILED
            reason = (str(error) or type(error).__name__).split("\n")[0][:LONGEST]
            self._say(f"{self._trigger}: stopped by an error{place}: {reason}")

    def searching(self) -> None:
        """Say that the subject is looked for in the whole photo; called after every pass.

        Raises:
            InterruptProcessingException: the person has cancelled.
        """
        self._place = "while looking for the subject in the photo"
        if time.monotonic() - self._said_at >= PATIENCE:
            self._say(f"Learning {self._trigger}: looking for the subject in the photo ...")
        check_cancelled()

    def drawing(self, done: int, total: int) -> None:
        """Say that prior pictures are drawn; called after every step of it.

        Raises:
            InterruptProcessingException: the person has cancelled.
        """
        self._place = "while drawing prior pictures"
        if time.monotonic() - self._said_at >= PATIENCE:
            share = f"{done / max(total, 1):.0%}"
            self._say(
                f"Learning {self._trigger}: drawing prior pictures, once for this base model and word ({share}) ..."
            )
        self._send(done, total, self.sheet)
        check_cancelled()

    def note(self, text: str) -> None:
        """One sentence more that stays below all that is said."""
        self._notes = (*self._notes, text)

    def begin(self, photos: Tensor | None, notes: Sequence[str], overview: Image.Image | None = None) -> None:
        """Show what is learned from, and what the person should know about it.

        Args:
            photos: ``(n, H, W, 3)`` in [0, 1], after the crop; none where they are not at hand.
            notes: sentences that stay below all that is said.
            overview: the whole photos with what was found in them; stays beside the crops.
        """
        self._place = ""
        self._overview = overview
        if photos is not None:
            self._photos = photos.detach().float().cpu()
            self.sheet = beside(overview, contact_sheet(self._photos))
        self._notes = tuple(notes)
        self._say(f"Learning {self._trigger} ...")
        self._send(0, 1, self.sheet)

    def memory(self, plan: str) -> None:
        """Say how memory is used, from now on below all that is said.

        Args:
            plan: the memory plan in a few words.
        """
        self._memory = (f"Memory: {plan}.",)
        self.panel.memory = plan

    def step(self, report: StepReport) -> None:
        """Advance the bar; the preview beside the photo is the loss so far, and what is not learned of the photo is dim.

        Raises:
            InterruptProcessingException: the person has cancelled. It is no ``Exception``: clean up in ``finally``.
        """
        # Said as soon as it is known, so that a person can cancel.
        self._early = report.notes
        self.panel.at(report)
        picture = None
        if report.masks is not None and not self._dimmed and self._photos is not None:
            crops = contact_sheet(dimmed(self._photos, report.masks))
            self._dimmed, self.sheet = True, beside(self._overview, crops)
            picture = self.sheet
        if report.micro == report.micros and self.sheet is not None:
            picture = with_curve(self.sheet, report.losses)
        self._send(report.done, report.total, picture)
        if self.previews is not None and live_view.is_watched() and self.previews.due(report):
            self.panel.preview = self.previews.picture(report) or self.panel.preview
        self._tell_place(report)
        check_cancelled()

    def again(self, sheet: Image.Image | None, losses: tuple[float, ...]) -> None:
        """Show the preview and the curve of a concept that was learned before."""
        self.panel.state, self.panel.step, self.panel.steps = KNOWN, len(losses), len(losses)
        if sheet is not None:
            self.sheet = sheet
            self.panel.send(sheet)
            self._send(0, 1, with_curve(sheet, losses))

    def done(self, told: str, concept: Concept) -> None:
        """Say how it ended well, and what was noticed on the way; the browser keeps it until another text comes."""
        self._early = concept.notes
        panel = self.panel
        panel.concept, panel.losses, panel.seconds_left = concept.fingerprint, concept.losses, None
        if panel.state != KNOWN:
            panel.state, panel.seconds = LEARNED, round(time.monotonic() - self._began, 1)
        self._say(told)

    def _tell_place(self, report: StepReport) -> None:
        now = time.monotonic()
        if report.phase == "tuning" and self._since is None:
            # The first micro-batch also loads and warms up; the others do not.
            self._since = now, report.done
        place, doing = {
            "subject": ("while looking for the subject", "looking for the subject ..."),
            "tuning": (f"at step {report.step} of {report.steps}", f"step {report.step} of {report.steps}"),
            "word": ("while averaging the word", "averaging the word ..."),
        }[report.phase]
        if place == self._place and now - self._said_at < PATIENCE and report.notes == self._told:
            return
        self._told = report.notes
        self._place = place
        if report.phase == "tuning" and self._since is not None and report.done > self._since[1]:
            pace = (now - self._since[0]) / (report.done - self._since[1])
            self.panel.seconds_left = max(1, round(pace * (report.total - report.done)))
            doing += f", about {self.panel.seconds_left} s left"
        self._say(f"Learning {self._trigger}: {doing}")

    def _say(self, text: str) -> None:
        self._said_at = time.monotonic()
        self.said = "\n".join([text, *self._early, *self._notes, *self._memory]).split("\n")
        self.panel.lines = self.said
        # Before the text and the preview: a browser with the panel then does not show them twice.
        self.panel.send(self.sheet)
        show_text("\n".join(self.said))

    def _send(self, value: int, maximum: int, picture: Image.Image | None) -> None:
        if get_executing_context() is not None:
            ComfyAPISync().execution.set_progress(value, max(maximum, 1), preview_image=picture)


def check_cancelled() -> None:
    """Raise ComfyUI's InterruptProcessingException if the person has cancelled."""
    comfy.model_management.throw_exception_if_processing_interrupted()
