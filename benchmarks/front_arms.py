"""The front benchmark's arms: ways to learn a photo and to draw it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """A way to learn and to draw.

    Attributes:
        name: in the table.
        settings: that differ from the domain's preset.
        strength: of the concept's own changes; the domain's offset stays whole.
        late: share of the sampling steps at whose start the own changes are left out.
        needs_trigger: whether a concept is drawn only where its trigger is in a prompt.
        base: the base model alone, with the domain word in the word's place.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    strength: float = 1.0
    late: float = 0.0
    needs_trigger: bool = False
    base: bool = False


WHOLE: dict[str, Any] = {"word_strength": 1.0}
ARMS = (
    Arm("base", base=True),
    Arm("untuned", {"steps": 0}),
    Arm("tuned"),
    *(Arm(f"strength {s:g}", strength=s) for s in (0.6, 0.8)),
    *(Arm(f"word {s:g}", {"word_strength": s}, needs_trigger=True) for s in (0.5, 0.6, 0.7, 0.8, 1.0)),
    *(Arm(f"late {share:g}", late=share) for share in (0.2, 0.3, 0.4)),
    Arm("by trigger", needs_trigger=True),
    *(Arm(f"high noise {power:g}", WHOLE | {"high_noise": power}, needs_trigger=True) for power in (0.0, 1.0)),
    *(Arm(f"prior {weight:g}", WHOLE | {"prior": weight}, needs_trigger=True) for weight in (2.0, 4.0, 30.0)),
    *(Arm(f"prior 4 in {n} steps", WHOLE | {"prior": 4.0, "steps": n}, needs_trigger=True) for n in (20, 30)),
)
