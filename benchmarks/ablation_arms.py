"""What the ablations switch (the paper's figure 4b), one thing in each arm, and what the paper says comes of it.

An arm differs from the one beside it by the fields that it names, and by nothing else. Arms on the shipped domain stand beside
"full", the quality benchmark's "e4t". Arms that need a domain of their own stand beside "short": all of those are pre-trained by
the shipped domain's config, but for much fewer steps, so they are compared with each other and never with "full".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FULL, SHORT, UNHELD_ARM, FREE = "full", "short", "short no lambda", "unheld"
PAPER = 0.1
"""The paper's λ for faces."""
UNPENALIZED: Mapping[str, Any] = {"regularization": 0.0}
"""A pre-training that lets the word go anywhere."""
RATES: Mapping[str, Any] = {"encoder_rate": 1.0, "stop_feature_gradient": False}
"""The paper's, where the mini world's preset has its own."""


@dataclass(frozen=True)
class Ablation:
    """One arm.

    Attributes:
        name: in tables.
        what: is switched, in a few words.
        changes: settings of tuning and drawing that differ from the domain's preset.
        pretraining: fields of the config's ``[training]`` that differ from the shortened pre-training; none: the shipped domain.
        of: name of the arm whose pre-trained domain it tunes, where it has none of its own.
        against: name of the arm that it is compared with, where that is not the first of its kind.
    """

    name: str
    what: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    pretraining: Mapping[str, Any] | None = None
    of: str = ""
    against: str = ""

    @property
    def beside(self) -> str:
        """Name of the arm that it is compared with."""
        return self.against or (FULL if self.pretraining is None else SHORT)


SHIPPED = (
    Ablation(FULL, "all of it, as shipped"),
    # Beside the arm whose concept it draws: that is learned once for both.
    Ablation("no refinement", "drawn with one fixed word", {"refine": False}),
    Ablation("no tuning", "the encoder's first answer", {"steps": 0}),
    Ablation("encoder and offsets", "the UNet is not tuned", {"train_unet": False}),
    Ablation("UNet only", "encoder and offsets are not tuned", {"train_encoder": False, "train_offsets": False}),
    Ablation("no lambda", "tuned without the penalty on the word", {"regularization": 0.0}),
    Ablation("paper's lambda", "tuned with the paper's penalty on the word", {"regularization": PAPER}),
    Ablation(
        "paper's lambda limited",
        "the same, but at most a tenth of the loss",
        {"regularization": PAPER, "regularization_limit": 0.1},
    ),
    Ablation("no find_subject", "all of the photo is learned", {"find_subject": False}),
    Ablation("encoder rate 1", "the encoder learns at the full rate, as in the paper", {"encoder_rate": 1.0}),
    Ablation(
        "feature gradient", "gradients through the feature pass, as in the paper", {"stop_feature_gradient": False}
    ),
    Ablation("both as in the paper", "the two before together", RATES),
)
SHORTENED = (
    Ablation(SHORT, "all of it, but a shortened pre-training", pretraining={}),
    Ablation(UNHELD_ARM, "no penalty on the word at all", {"regularization": 0.0}, UNPENALIZED),
    Ablation("short direct offsets", "offsets learned entry by entry", pretraining={"offset_form": "direct"}),
    Ablation("short no offsets", "an encoder alone", {"train_offsets": False}, {"train_offsets": False}),
    # A hypernetwork gives every photo weights of its own, so that photos pass the UNet one by one: time, not the result.
    Ablation(
        "short HyperNetwork",
        "offsets from the photo's CLIP features",
        pretraining={"offset_form": "hypernetwork", "micro_batch": 1},
    ),
)
# As a converted file may be: its encoder was never held back, and then the paper's tuning holds it.
UNHELD = tuple(
    Ablation(
        f"unheld lambda {weight:g}" if weight else FREE,
        f"that domain by the paper's rates, penalty {weight:g}",
        {**RATES, "regularization": weight},
        UNPENALIZED,
        UNHELD_ARM,
        FREE if weight else UNHELD_ARM,
    )
    for weight in (0.0, 0.001, 0.01, PAPER)
) + tuple(
    Ablation(
        f"unheld limit {limit:g}",
        f"the paper's penalty on that domain's word, at most {limit:g} of the loss",
        {**RATES, "regularization": PAPER, "regularization_limit": limit},
        UNPENALIZED,
        UNHELD_ARM,
        FREE,
    )
    for limit in (0.03, 0.1, 0.3, 1.0)
)
FROZEN = tuple(
    Ablation(f"frozen at {percent} %", "the word stays from then on (figure 6)", {"end_percent": percent / 100})
    for percent in (0, 20, 40)
)
ARMS = {arm.name: arm for arm in (SHIPPED[0], *FROZEN, *SHIPPED[1:], *SHORTENED, *UNHELD)}


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, as a figure that falls where a switch is thrown.

    Attributes:
        arm: name of the ablation.
        measure: that falls, one of the benchmark's.
        text: what the paper says.
    """

    arm: str
    measure: str
    text: str


IDENTITY, EDITING = "likeness", "PROMPT"
"""What the paper measures: similarity to the person's photos by an identity network, and how well prompts are obeyed."""
CLAIMS = (
    Claim("no tuning", IDENTITY, "Avoiding the tuning step significantly reduces identity preservation."),
    Claim("encoder and offsets", IDENTITY, "So does restricting it to encoder and offsets."),
    Claim("no refinement", EDITING, "Without iterative refinement the concept can be modified less well."),
    Claim(
        "no lambda", EDITING, "Without the penalty on the word the model overfits and is difficult to modify (tuning)."
    ),
    Claim("short no lambda", EDITING, "The same, in pre-training and tuning."),
    Claim("short direct offsets", EDITING, "Without regularized weight offsets the model overfits."),
    Claim("short HyperNetwork", EDITING, "With a HyperNetwork it overfits."),
    Claim("short no offsets", IDENTITY, "An encoder alone falls behind the full model (figure only)."),
    Claim("UNet only", IDENTITY, "Tuning only the UNet falls behind the full model (figure only)."),
)
