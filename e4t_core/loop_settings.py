"""What the training loop needs to know, whatever the method; and how a finished concept is drawn."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .memory_plan import PLANS
from .settings import check_settings, setting


@dataclass(frozen=True)
class LoopSettings:
    """Settings that every method has; a method adds its own and sets its own defaults.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    steps: int = setting(
        15, "Optimizer steps. 0 leaves the first answer as it is, without tuning.", least=0, most=100_000
    )
    learning_rate: float = setting(
        1.6e-5, "Every step moves every trained number by about this much.", least=0, most=1, step=1e-6
    )
    batch: int = setting(
        16,
        "Noise levels of the photo per step. At least 16 is advised: they cover the schedule.",
        least=1,
        most=256,
        unit="samples",
    )
    memory: str = setting(
        "auto",
        "How much of the card's memory learning may take. auto: what is free. Each plan takes less memory and more time than"
        " the one before, and gives nearly the same result.",
        choices=("auto", *PLANS),
    )
    micro_batch: int = setting(
        0,
        "How many noise levels are computed at once, at most the batch. 0: as many as fit. Lower needs less memory and gives"
        " nearly the same result.",
        least=0,
        most=256,
        unit="samples",
        advanced=True,
    )
    use_mask: bool = setting(True, "Learn where the mask is white. Off: all of the crop.")
    mask_threshold: float = setting(
        0.0,
        "How much of a latent cell (8 x 8 pixels) the mask must cover before it is learned. Raise it (0.5) if what you"
        " left out beside the subject, such as a hat, comes back all the same.",
        least=0,
        most=0.9,
        step=0.05,
        advanced=True,
    )
    rate_decay: bool = setting(
        False, "Lowers the learning rate to zero over the second half of the steps.", advanced=True
    )
    weight_decay: float = setting(
        0.01, "AdamW: pull of every trained number to zero.", least=0, most=0.5, step=0.001, advanced=True
    )
    beta1: float = setting(
        0.9, "AdamW: how long a gradient's direction is remembered.", least=0, below=1, step=0.001, advanced=True
    )
    beta2: float = setting(
        0.999, "AdamW: how long a gradient's size is remembered.", least=0, below=1, step=0.0001, advanced=True
    )
    eps: float = setting(
        1e-8,
        "AdamW: gradients much smaller than this move a number by less.",
        least=0,
        most=1,
        step=1e-8,
        advanced=True,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.learning_rate == 0 and self.steps > 0:
            raise ValueError("Setting learning_rate = 0 would train nothing: raise it, or set steps to 0.")

    def for_photos(self, count: int) -> LoopSettings:
        """These for so many photos, 1 or more: as they count, where some depend on it."""
        return self

    def rate(self, step: int) -> float:
        """The learning rate's share, 0-1, in optimizer step ``step`` of 0..steps-1."""
        return min(1.0, 2 * (self.steps - step) / self.steps) if self.rate_decay else 1.0

    def level(self, share: float) -> float:
        """The noise level, as a share of the schedule, of a sample that is so far into its batch, both 0-1."""
        return share

    def learned_with(self) -> dict[str, Any]:
        """All values by name that decide what is learned, for keys and fingerprints; memory changes it by rounding only."""
        return {
            name: value for name, value in dataclasses.asdict(self).items() if name not in ("memory", "micro_batch")
        }


@dataclass(frozen=True)
class SamplingSettings:
    """How a concept is drawn; what was learned is the same whatever they are.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    refine: bool = setting(True, "Predict the word anew at every sampling step. Off: one fixed word, as fast as stock.")
    start_percent: float = setting(
        0.0,
        "Share of the sampling schedule before which the fixed word is used.",
        least=0,
        most=1,
        step=0.01,
        advanced=True,
    )
    end_percent: float = setting(
        1.0, "Share of the sampling schedule after which the word is frozen.", least=0, most=1, step=0.01
    )
    refine_every: int = setting(
        1,
        "Predict the word at every so many evaluations of the sampler only. Higher is faster. In the mini world every third one was"
        " as good.",
        least=1,
        most=100,
        unit="evaluations",
        advanced=True,
    )
    share_pass: bool = setting(
        True,
        "Look at the noisy picture in the negative prompt's own pass, where that prompt is empty. Faster; pictures differ by"
        " rounding.",
        advanced=True,
    )
    needs_trigger: bool = setting(
        True,
        "Draw pictures whose prompts do not hold the trigger as if the concept were not there. Off: they come out a bit like the"
        " photo, with the domain's word most of all.",
    )

    def __post_init__(self) -> None:
        check_settings(self)
