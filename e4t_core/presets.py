"""Settings of one-shot tuning, as data: rates and steps (the paper's section 3.5)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

# How a concept is drawn, not what is learned.
OF_SAMPLING = ("refine", "end_percent")
SWITCHES = (
    "train_encoder",
    "train_offsets",
    "train_unet",
    "use_mask",
    "find_subject",
    "refine",
    "stop_feature_gradient",
)


@dataclass(frozen=True)
class TuningSettings:
    """Everything that decides a tuning besides photo, base, domain and seed.

    Attributes:
        steps: optimiser steps; 0 leaves the encoder's first answer as it is.
        learning_rate: of AdamW; every step moves every trained weight by about this much.
        encoder_rate: the encoder's learning rate as a share of it, above 0 and at most 1. All its weights push the word the same way,
            so at the full rate one step may throw the word beyond where it should stay.
        regularization: lambda, the weight of ``mean ||E||²``.
        batch: noise levels of the photo(s) per optimiser step.
        micro_batch: how many of them pass the UNet at once; changes memory and time, and the result by rounding.
        train_encoder: tune the concept encoder.
        train_offsets: tune the weight offsets.
        train_unet: tune all UNet weights.
        use_mask: weight the diffusion loss by the mask, where there is one.
        refine: predict the word anew at every denoising evaluation when sampling.
        end_percent: share of the sampling schedule, 0-1, after which the word is frozen.
        stop_feature_gradient: no gradients through the UNet's feature pass: the UNet's weights then learn to draw the word, not
            to change it. A step costs less, and rounding is not amplified from step to step.
        weight_decay, betas, eps: of AdamW.
        mask_threshold: share of a latent cell (8 x 8 pixels) that the mask must cover before the cell counts, 0 to below 1.
        find_subject: where a mask is to be used and there is none, let the domain find the subject (``subject.py``).

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    steps: int = 15
    learning_rate: float = 1.6e-5
    regularization: float = 0.1
    batch: int = 16
    micro_batch: int = 4
    train_encoder: bool = True
    train_offsets: bool = True
    train_unet: bool = True
    use_mask: bool = True
    refine: bool = True
    end_percent: float = 1.0
    stop_feature_gradient: bool = False
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    mask_threshold: float = 0.0
    find_subject: bool = True
    encoder_rate: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "micro_batch"):
            value, least = getattr(self, name), 0 if name == "steps" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"Tuning setting {name} = {value!r} must be a whole number of at least {least}.")
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"Tuning setting {name} = {getattr(self, name)!r} must be true or false.")
        for name in ("learning_rate", "regularization", "weight_decay", "eps", "end_percent"):
            _check_number(name, getattr(self, name))
        if self.learning_rate == 0 and self.steps > 0:
            raise ValueError("Tuning setting learning_rate = 0 would train nothing: raise it, or set steps to 0.")
        _check_number("encoder_rate", self.encoder_rate)
        if not 0 < self.encoder_rate <= 1:
            raise ValueError(f"Tuning setting encoder_rate = {self.encoder_rate!r} must lie above 0 and be at most 1.")
        _check_number("mask_threshold", self.mask_threshold)
        if self.mask_threshold >= 1:
            raise ValueError(f"Tuning setting mask_threshold = {self.mask_threshold!r} must be at least 0 and below 1.")
        if self.end_percent > 1:
            raise ValueError(f"Tuning setting end_percent = {self.end_percent!r} must lie between 0 and 1.")
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise ValueError(f"Tuning setting betas = {self.betas!r} must be two numbers.")
        for beta in self.betas:
            _check_number("betas", beta)
            if beta >= 1:
                raise ValueError(f"Tuning setting betas = {self.betas!r} must lie in [0, 1).")
        if self.micro_batch > self.batch:
            raise ValueError(
                f"Tuning setting micro_batch = {self.micro_batch} is larger than batch = {self.batch}: lower it."
            )
        if self.steps > 0 and not (self.train_encoder or self.train_offsets or self.train_unet):
            raise ValueError(
                f"Tuning with steps = {self.steps} would train nothing: switch on train_encoder, train_offsets or"
                " train_unet, or set steps to 0."
            )

    def learned_with(self) -> dict[str, Any]:
        """The values that decide what is learned: all but ``refine`` and ``end_percent``, which only sampling reads."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in OF_SAMPLING}


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"Tuning setting {name} = {value!r} must be a finite number of at least 0.")


FACE = TuningSettings(steps=15, learning_rate=1.6e-5, regularization=0.1)
CAT = TuningSettings(steps=5, learning_rate=4.8e-5, regularization=1e-4, use_mask=False)
ART = CAT
# The mini world's base is small and trained from scratch: an Adam step moves every weight by the rate, so it needs more. Its words
# lie about one length of the domain word from it; lambda is the one of pre-training. Both were chosen on validation faces.
_MINI = TuningSettings(steps=15, learning_rate=1e-4, regularization=1e-4, micro_batch=16)
# At that rate the encoder, and all of the UNet by the gradients through its feature pass, would throw the word so
# far in each of the first steps that a rounding of 1e-6 grows to a tenth of what is learned. With neither, the result is the
# same whatever the micro-batch; 12 validation faces gained 0.02 in NAMED and lost 0.013 in PROMPT, both within their intervals;
# 64 held-out faces, drawn afterwards, lost 0.01 in NAMED.
MINI_FACE = dataclasses.replace(_MINI, encoder_rate=0.03, stop_feature_gradient=True)
# What cats wear lies against their fur, so its rim is learned with them and comes back in other pictures. Chosen on validation cats;
# on validation faces, which show little of that, the same threshold costs likeness.
MINI_CAT = dataclasses.replace(_MINI, mask_threshold=0.5)

PRESETS: dict[str, TuningSettings] = {
    "face": FACE,
    "cat": CAT,
    "art": ART,
    "mini_face": MINI_FACE,
    "mini_cat": MINI_CAT,
}
