"""What a concept file says of its concept besides its numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..loop_settings import LoopSettings, SamplingSettings
from ..memory_plan import PLANS
from ..methods.e4t.domain_info import BLOCKS, FEATURES, READINGS, TOKENS, WIDTH
from ..methods.registered import SETTINGS
from .description import check_fields, choice, from_json, number, table, text

EXACT, COMPACT, RECIPE, WORD = "exact", "compact", "recipe", "word"
BODIES = (EXACT, COMPACT, RECIPE, WORD)
"""What of a concept a file keeps."""
RECOVERABLE = "The photo can be recovered from this file: give it only to people who may see the photo."
"""What is said of a recipe."""

PREDICTORS = 16
LOSSES = 1000


@dataclass(frozen=True)
class PredictorInfo:
    """Shapes of one word predictor: what its encoder is built from, once the file's header agrees.

    Raises:
        ValueError: a value is out of range.
    """

    reading: str = choice(READINGS)
    vectors: int = number(1, max(BLOCKS, TOKENS))
    width: int = number(1, WIDTH)
    feature_width: int = number(1, FEATURES)
    context_width: int = number(1, WIDTH)
    scale: float = number(0, 1000, above=0)
    share: float = number(0, 1, above=0, default=1.0)

    def __post_init__(self) -> None:
        check_fields(self, "Predictor")


@dataclass(frozen=True)
class ConceptInfo:
    """The description of a concept.

    Attributes:
        trigger: what a person types; 2 to 100 characters.
        title: what people call it.
        method: that learned it.
        body: what the file keeps: all of it ("exact"), small changes ("compact"), what learns it again ("recipe"), or its
            fixed word alone ("word").
        fingerprint, base_fingerprint, domain_fingerprint: content hashes of the concept, its base and its domain.
        settings: of its learning, as JSON says them.
        sampling: how it is drawn.
        seed: of its learning, in digits: JSON's numbers lose some of 64 bits.
        word: the coarse word that it started from.
        prediction: of its base; empty if unknown.
        base_name, domain_name: what they were called.
        losses: of the optimizer steps, some left out where there are more than 1000.
        notes: what was said of it.
        created: date and time.
        pack_version: of the extension that wrote it.
        author, license: as the person says.
        weights_file: name of the second file, where there is one.
        predictors: of its word.
        plan, micro_batch: of the memory plan that it was learned under.
        compact: the description of a compact body, see ``compact_body``.

    Raises:
        ValueError: a value is out of range.
    """

    trigger: str = text(100, least=2)
    title: str = text(200)
    method: str = choice(tuple(SETTINGS))
    body: str = choice(BODIES)
    fingerprint: str = text(64, least=1)
    base_fingerprint: str = text(64)
    settings: Mapping[str, Any] = table(100)
    sampling: Mapping[str, Any] = table(100)
    seed: str = text(20, pattern=r"[0-9]{1,20}", hint="digits")
    word: str = text(60, default="")
    prediction: str = choice(("", "epsilon", "v"), "")
    base_name: str = text(300, default="")
    domain_name: str = text(100, default="")
    domain_fingerprint: str = text(64, default="")
    losses: tuple[float, ...] = number(-1e9, 1e9, default=(), count=(0, LOSSES))
    notes: tuple[str, ...] = text(2000, lines=True, default=(), count=(0, 100))
    created: str = text(40, default="")
    pack_version: str = text(40, default="")
    author: str = text(200, default="")
    license: str = text(2000, lines=True, default="")
    weights_file: str = text(240, pattern=r"|[^/\\:\0]+\.safetensors", hint="a file's name", default="")
    predictors: tuple[PredictorInfo, ...] = ()
    plan: str = choice(("", *PLANS), "")
    micro_batch: int = number(0, 256, default=0)
    compact: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "Concept")
        if len(self.predictors) > PREDICTORS or not all(isinstance(one, PredictorInfo) for one in self.predictors):
            raise ValueError(f"Concept predictors must be at most {PREDICTORS}.")
        if sum(one.vectors for one in self.predictors) > TOKENS:
            raise ValueError(f"Concept predictors must read at most {TOKENS} vectors together.")
        if len({one.feature_width for one in self.predictors}) > 1:
            raise ValueError("Concept predictors must read UNet features of one width.")
        if self.predictors and not math.isclose(sum(one.share for one in self.predictors), 1, abs_tol=1e-6):
            raise ValueError("Concept predictors must have shares that sum to 1.")
        if int(self.seed) >= 2**64:
            raise ValueError(f"Concept seed = {self.seed} must be below 2**64.")
        if (self.body == COMPACT) != bool(self.compact):
            raise ValueError("Concept compact must describe the small changes of a compact concept, and of no other.")
        self.loop_settings()
        self.sampling_settings()

    def loop_settings(self) -> LoopSettings:
        """The settings of its method, as they counted.

        Raises:
            ValueError: one of them is unknown or out of range.
        """
        found: LoopSettings = from_json(SETTINGS[self.method], dict(self.settings))
        # The steps are those that it took, also in a file that is older than what gives several photos more of them.
        return found.for_photos(1)

    def sampling_settings(self) -> SamplingSettings:
        """How it is drawn.

        Raises:
            ValueError: as above.
        """
        found: SamplingSettings = from_json(SamplingSettings, dict(self.sampling))
        return found


def info_from_json(data: dict[str, Any]) -> ConceptInfo:
    """A description from a JSON object.

    Raises:
        ValueError: it is damaged; one sentence says where.
    """
    predictors = data.get("predictors", [])
    if not isinstance(predictors, list) or len(predictors) > PREDICTORS:
        raise ValueError("Concept predictors must be a short list")
    data = {**data, "predictors": tuple(from_json(PredictorInfo, one) for one in predictors)}
    found: ConceptInfo = from_json(ConceptInfo, data)
    return found


def thinned(losses: tuple[float, ...]) -> tuple[float, ...]:
    """At most :data:`LOSSES` of a curve, the first and the last among them."""
    if len(losses) <= LOSSES:
        return losses
    return tuple(losses[round(index * (len(losses) - 1) / (LOSSES - 1))] for index in range(LOSSES))


def as_table(settings: Any) -> dict[str, Any]:
    """Settings as JSON says them."""
    return dataclasses.asdict(settings)
