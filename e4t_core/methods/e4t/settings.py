"""E4T's settings of one-shot tuning, and its presets: rates and steps (the paper's section 3.5)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...loop_settings import LoopSettings
from ...settings import setting

COUNTED = 10
"""Photos that take more steps, at most: a folder of a hundred is to be learned in minutes, too."""


@dataclass(frozen=True)
class TuningSettings(LoopSettings):
    """Everything that decides a tuning besides photo, base, domain and seed.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    # One photo soon says all that it can, and more steps only cost what prompts can still ask for; several photos each need a look.
    more_steps: float = setting(
        0.5,
        "For each photo after the first, so many times the steps more, and a learning rate that falls to zero over the second half of"
        " them. 0.5: five photos take three times the steps of one. 0: any number of photos takes the same. At most ten photos count.",
        least=0,
        most=10,
        step=0.1,
        advanced=True,
    )
    # What a picture shows is settled while there is much noise; the last details are the same for most photos. T2I-Adapter (arXiv
    # 2302.08453) learns from high noise levels more often for the same reason.
    high_noise: float = setting(
        0.0,
        "How much more often high noise levels are learned than low ones. 0: all alike, as in the paper. 1: in proportion to the"
        " timestep.",
        least=0,
        most=8,
        step=0.1,
        advanced=True,
    )
    regularization: float = setting(
        0.1,
        "lambda: how strongly the word is held near the domain's word (0.1 for faces, 0.0001 for cats).",
        least=0,
        most=100,
        step=1e-4,
    )
    regularization_limit: float = setting(
        0.0,
        "The most that regularization may add to the loss, as a share of the rest of it. 0: no limit, as in the paper. 0.03 keeps the"
        " likeness of words that lie far from the domain's word.",
        least=0,
        most=1000,
        step=0.01,
        advanced=True,
    )
    train_encoder: bool = setting(True, "Tune the concept encoder.")
    train_offsets: bool = setting(True, "Tune the domain's weight offsets.")
    train_unet: bool = setting(True, "Tune all UNet weights. Off: much less memory, and less of a likeness.")
    find_subject: bool = setting(
        True,
        "Without a mask, learn only what the domain finds to be the subject (the bright part of the preview). Off: learn all"
        " of the crop, background included.",
    )
    stop_feature_gradient: bool = setting(
        False,
        "No gradients through the pass that looks at the noisy photo: less work per step, and less sensitive to rounding.",
        advanced=True,
    )
    # All weights of the encoder push the word the same way, so at the full rate one step may throw the word beyond where
    # it should stay.
    encoder_rate: float = setting(
        1.0,
        "The encoder's share of the learning rate. Lower it (0.03) if small changes, such as another micro_batch, give"
        " another picture.",
        above=0,
        most=1,
        step=0.01,
        advanced=True,
    )
    # The tuned weights hold the likeness; a word that says it all once more argues with the rest of the prompt.
    word_strength: float = setting(
        1.0,
        "How much of the tuned word is kept. 1: all of it, as in the paper. Lower it (0.6) if prompts cannot change what the"
        " photo shows, such as the color of hair. Without tuning it is always whole.",
        above=0,
        most=1,
        step=0.05,
    )
    prior: float = setting(
        0.0,
        "How strongly all that the photo does not show stays as the domain draws it: other people, styles, what is worn. 0: not at"
        " all, as in the paper.",
        least=0,
        most=1000,
        step=0.1,
        advanced=True,
    )
    prior_samples: int = setting(
        4,
        "With prior: how many such predictions are compared in every step, at most the batch.",
        least=1,
        most=256,
        unit="samples",
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior > 0 and self.prior_samples > self.batch:
            raise ValueError(f"Setting prior_samples = {self.prior_samples} must be at most batch ({self.batch}).")
        if self.steps > 0 and not (self.train_encoder or self.train_offsets or self.train_unet):
            raise ValueError(
                f"Tuning with steps = {self.steps} would train nothing: switch on train_encoder, train_offsets or"
                " train_unet, or set steps to 0."
            )

    def idle(self) -> tuple[str, ...]:
        """Settings that do nothing as the others are: keys and fingerprints leave them out."""
        return (
            *(() if self.prior > 0 else ("prior", "prior_samples")),
            *(() if self.kept_of_word != 1 else ("word_strength",)),
            *(() if self.more_steps > 0 else ("more_steps",)),
            *(() if self.high_noise > 0 else ("high_noise",)),
            *(() if self.regularization_limit > 0 and self.regularization > 0 else ("regularization_limit",)),
        )

    def for_photos(self, count: int) -> TuningSettings:
        more = self.more_steps * (min(count, COUNTED) - 1)
        if not more or not self.steps:
            return replace(self, more_steps=0.0)
        return replace(self, more_steps=0.0, rate_decay=True, steps=round(self.steps * (1 + more)))

    def level(self, share: float) -> float:
        """The density of timesteps t is in proportion to ``t ** high_noise``, see :meth:`LoopSettings.level`."""
        return float(share ** (1 / (1 + self.high_noise)))

    @property
    def kept_of_word(self) -> float:
        """The word's strength in the concept: without tuning, its only likeness is the word's."""
        return self.word_strength if self.steps > 0 else 1.0

    def learned_with(self) -> dict[str, Any]:
        """See :meth:`LoopSettings.learned_with`."""
        return {name: value for name, value in super().learned_with().items() if name not in self.idle()}


FACE = TuningSettings()
CAT = TuningSettings(steps=5, learning_rate=4.8e-5, regularization=1e-4, use_mask=False)
ART = CAT

PRESETS: dict[str, TuningSettings] = {"face": FACE, "cat": CAT, "art": ART}
"""The paper's. A domain file brings its own, which may be another."""
BEARABLE = 0.03
"""The ``regularization_limit`` that cost no likeness, however far the words; 0.1 cost a little (``python -m benchmarks.ablations``)."""


def for_new_domain(preset: str) -> TuningSettings:
    """What a domain file that is made now says of tuning: a preset of the paper's, with a penalty that cannot take the word away.

    Args:
        preset: one of ``PRESETS``.
    """
    return replace(PRESETS[preset], regularization_limit=BEARABLE)
