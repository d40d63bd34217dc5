"""The compact benchmark's figures: what every form keeps of the exact form's scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .compact_forms import EXACT, Form, sd15_bytes
from .quality_report import ArmScores
from .statistics import Interval, bootstrap, weighted_ratio

IDENTITY_GATE, PROMPT_GATE, BYTES_GATE = 0.99, 0.98, 10e6


@dataclass(frozen=True)
class Result:
    """What a form keeps, as shares of the exact form's scores.

    Attributes:
        bytes: at Stable Diffusion 1.5's shapes.
        named, likeness, prompt: shares.
        scores: NAMED, likeness and PROMPT themselves, the mean of both judges.
    """

    form: Form
    bytes: int
    named: Interval
    likeness: Interval
    prompt: Interval
    scores: dict[str, float]

    @property
    def is_kept(self) -> bool:
        """Whether all but the size is as the gates want it."""
        return min(self.named.value, self.likeness.value) >= IDENTITY_GATE and self.prompt.value >= PROMPT_GATE

    def row(self) -> str:
        """A line of the Markdown table."""

        def share(part: Interval) -> str:
            return f"{part.value:.3f} [{part.low:.3f}, {part.high:.3f}]"

        scores = " | ".join(f"{value:.3f}" for value in self.scores.values())
        shares = " | ".join(share(part) for part in (self.named, self.likeness, self.prompt))
        return f"| {self.form.name} | {self.bytes / 1e6:.2f} | {scores} | {shares} |"


def likeness(scores: ArmScores, w: np.ndarray) -> np.ndarray:
    """Cosine of the identity net with the concept photo."""
    return weighted_ratio(w, scores.likeness.value, scores.likeness.weight)


MEASURES: dict[str, Callable[[ArmScores, np.ndarray], np.ndarray]] = {
    "NAMED": ArmScores.named_ratio,
    "likeness": likeness,
    "PROMPT": ArmScores.prompt_mean,
}


def results(found: dict[str, dict[str, ArmScores]], forms: list[Form], count: int) -> list[Result]:
    """Every form against the exact one."""

    def mean(form: str, measure: str, w: np.ndarray) -> np.ndarray:
        return np.mean([MEASURES[measure](arms[form], w) for arms in found.values()], axis=0)

    def share(form: str, measure: str) -> Interval:
        return bootstrap(lambda w: mean(form, measure, w) / mean(EXACT.name, measure, w), count)

    one = np.ones((1, count))
    return [
        Result(
            form,
            sd15_bytes(form),
            share(form.name, "NAMED"),
            share(form.name, "likeness"),
            share(form.name, "PROMPT"),
            {measure: round(float(mean(form.name, measure, one)[0]), 4) for measure in MEASURES},
        )
        for form in forms
    ]


def markdown(found: list[Result]) -> str:
    """The table of docs/measured.md."""
    header = (
        "| form | MB at SD 1.5 | NAMED | likeness | PROMPT | share of NAMED | share of likeness | share of PROMPT |"
    )
    return "\n".join([header, "|" + "---|" * 8, *(result.row() for result in found)])
