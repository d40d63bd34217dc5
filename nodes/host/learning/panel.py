"""The panel of a node that learns, as the browser draws it (``web/js/learning_panel.js``)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ....e4t_core.run import StepReport
from .. import live_view
from .pictures import jpeg_uri

# Seconds between two messages while nothing but numbers change.
PATIENCE = 0.2
# Seconds after which a picture is sent again, for a page that was loaded anew meanwhile.
REMINDER = 3.0
# Losses of one message: more than the panel has pixels for are left out.
POINTS = 240

LEARNING, LEARNED, KNOWN, CANCELLED, FAILED = "learning", "learned", "known", "cancelled", "failed"
"""States of a panel. KNOWN: learned before, from the same inputs."""


@dataclass
class LearningPanel:
    """What a panel shows; changed in place, and sent by :meth:`send`.

    Attributes:
        trigger: what is learned is called so.
        state: one of the states above.
        lines: all that the node says, as its text.
        step, steps: optimizer steps.
        done, total: micro-batches of the whole run.
        seconds_left: about; none: not known.
        seconds: that the learning took; none: not known.
        losses: of the steps so far.
        memory: the memory plan, in words.
        concept: fingerprint of what was learned; empty before.
        preview: what would be drawn now; none before the first.
    """

    trigger: str
    state: str = LEARNING
    lines: Sequence[str] = ()
    step: int = 0
    steps: int = 0
    done: int = 0
    total: int = 0
    seconds_left: int | None = None
    seconds: float | None = None
    losses: Sequence[float] = ()
    memory: str = ""
    concept: str = ""
    preview: Image.Image | None = None
    _previewed: Image.Image | None = field(default=None, repr=False)
    _picture: tuple[Image.Image | None, str] = field(default=(None, ""), repr=False)
    _sent: tuple[str, float, float] = field(default=("", -math.inf, -math.inf), repr=False)

    def at(self, report: StepReport) -> None:
        """A run stands there."""
        self.step, self.steps = report.step, report.steps
        self.done, self.total, self.losses = report.done, report.total, report.losses

    def told(self) -> dict[str, Any]:
        """All of it but pictures, as JSON's types; also what the job's history keeps."""
        return {
            "trigger": self.trigger,
            "state": self.state,
            "lines": list(self.lines),
            "step": self.step,
            "steps": self.steps,
            "done": self.done,
            "total": self.total,
            "seconds_left": self.seconds_left,
            "seconds": self.seconds,
            "losses": thinned(self.losses),
            "memory": self.memory,
            "concept": self.concept,
        }

    def send(self, sheet: Image.Image | None) -> None:
        """Send it, and the photos as they are learned where the browser may not have them.

        Not more often than a person can see: while a run goes on, what changes sooner is sent with the next message.
        """
        if not live_view.is_watched():
            return
        now = time.monotonic()
        state, sent, pictured = self._sent
        fresh = sheet is not self._picture[0] or self.preview is not self._previewed
        if self.state == state == LEARNING and not fresh and now - sent < PATIENCE:
            return
        if sheet is not self._picture[0]:
            self._picture = (sheet, "" if sheet is None else jpeg_uri(sheet))
        again = fresh or self.state != state or now - pictured > REMINDER
        pictures = {}
        if again:
            self._previewed = self.preview
            preview = "" if self.preview is None else jpeg_uri(self.preview)
            pictures = {"picture": self._picture[1], "preview": preview}
        live_view.send(live_view.LEARNING, self.told() | pictures)
        self._sent = (self.state, now, now if again else pictured)


def thinned(losses: Sequence[float]) -> list[float]:
    """At most 240 of some losses, the first and the last among them, in four digits; none that JSON cannot say."""
    count = len(losses)
    kept = losses if count <= POINTS else [losses[round(i * (count - 1) / (POINTS - 1))] for i in range(POINTS)]
    return [float(f"{loss:.4g}") for loss in kept if math.isfinite(loss)]
