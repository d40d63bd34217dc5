"""What the sampler says of each concept: in how many prompts its word is, where it is refined, and what to do if not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CHANGED = "a node changed that prompt in a way that cannot be followed"
HIDDEN = "another node's text encoder cannot be run again for it"
REGION = "a node draws that prompt in a region of its own"
NEGATIVE = "negative"


@dataclass
class Sighting:
    """Where a concept was seen in one prompt of a sampling run.

    Attributes:
        role: what the sampler calls the prompt: "positive", "negative", "middle" ...; "" if that is unknown.
        why_fixed: why its word is not refined there; "" if it is.
    """

    role: str
    why_fixed: str = ""


@dataclass
class Sightings:
    """All that was seen of one concept.

    Attributes:
        trigger: as the MODEL or the prompt calls it.
        held: whether the MODEL holds the concept.
        refines: whether its settings let the word be refined.
        seen: prompt by prompt.
        layers: whether single layers of the network read it in a way of their own.
        encoded: whether a prompt with it was encoded lately.
        near: what a prompt says in place of the trigger, in other upper and lower case; "" for nothing.
        left_out: whether this run draws without its weights, because no prompt holds the trigger.
    """

    trigger: str
    held: bool = True
    refines: bool = True
    layers: bool = False
    seen: list[Sighting] = field(default_factory=list)
    encoded: bool = False
    near: str = ""
    left_out: bool = False

    @property
    def good(self) -> bool:
        """Nothing here needs a person's attention."""
        return self.held and bool(self.seen) and not any(sighting.why_fixed for sighting in self.seen)


def announcement(concepts: Mapping[str, Sightings], prompts: int, unknown: int = 0) -> tuple[str, bool]:
    """The text, one line for each concept, and whether all is well.

    Args:
        concepts: by fingerprint.
        prompts: how many the sampler was given.
        unknown: how many of them nobody can tell the making of.
    """
    text = "\n".join(_line(sightings, prompts, unknown) for sightings in concepts.values())
    return text, all(sightings.good for sightings in concepts.values())


def _line(concept: Sightings, prompts: int, unknown: int) -> str:
    trigger, seen = concept.trigger, concept.seen
    if not concept.held:
        return (
            f"{trigger} is in a prompt, but this MODEL does not hold that concept: wire the MODEL output of the"
            " node that learned it into the sampler."
        )
    if not seen and unknown and concept.encoded:
        return (
            f"{trigger} was not recognized in {_prompts(prompts)}, but {unknown} of them came from a node whose changes cannot"
            f" be followed: if {trigger} is in there, the word stays the same at all steps."
        )
    if not seen:
        near = f" (found {concept.near!r}, the trigger is {trigger!r})" if concept.near else ""
        drawn = ", so the picture is drawn without it" if concept.left_out else ""
        return (
            f"{trigger} was found in none of {_prompts(prompts)}{near}{drawn}: write it into the prompt, and encode that with"
            " the CLIP output of the node that learned it."
        )
    text = f"{trigger} in {len(seen)} of {_prompts(prompts)}"
    if all(sighting.role.startswith(NEGATIVE) for sighting in seen):
        text = f"{text}, only in the negative prompt"
    if not (concept.refines or concept.layers):
        return f"{text} (refinement off)"
    reasons = list(dict.fromkeys(sighting.why_fixed for sighting in seen if sighting.why_fixed))
    if not reasons:
        return text
    fixed = sum(bool(sighting.why_fixed) for sighting in seen)
    if concept.layers:
        return f"{text}, but in {fixed} as one word for all layers: {_join(reasons)}."
    return f"{text}, but not refined in {fixed}: {_join(reasons)}, so the word stays the same at all steps there."


def _join(reasons: Sequence[str]) -> str:
    return "; ".join(reasons)


def _prompts(count: int) -> str:
    return "1 prompt" if count == 1 else f"{count} prompts"
