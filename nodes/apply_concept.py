"""The node "Apply E4T Concept": a concept on a base model, at a strength, under a trigger."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

from ..e4t_core.concept import Concept
from ..e4t_core.loop_settings import SamplingSettings
from .host.learning.apply import Drawing, about_base, applied, check_applicable
from .host.learning.domain_at_hand import find_domain
from .host.learning.learn import learn_again
from .host.learning.progress import Progress
from .host.learning.result_store import STORE
from .host.live_view import CONCEPT, LEARNED, card
from .host.node_text import show_text
from .learned import validate_trigger
from .sockets import ConceptIO
from .widgets import OFF, ON, UNTOUCHED

OWN = "concept"


class ApplyConcept(io.ComfyNode):
    """Puts a concept into MODEL and CLIP; at full strength this is what the node that learned it gives."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="E4TApplyConcept",
            display_name="Apply E4T Concept",
            category="E4T",
            description="Draws a concept with this MODEL and CLIP. Write its trigger into any prompt that is encoded with this"
            " node's CLIP and drawn with its MODEL.",
            search_aliases=["apply concept", "use concept", "strength"],
            # Widget values are stored by position: once a version is out, only append.
            inputs=[
                io.Model.Input("model", tooltip="A base model of the family that the concept was learned on."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                ConceptIO.Input("concept", tooltip="From Load or Mix E4T Concept, or from a node that learns a photo."),
                io.Float.Input(
                    "strength_model",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    tooltip="Of what was learned in the model's weights. 0: the base model as it is. Lower it where prompts are"
                    " not obeyed.",
                ),
                io.Float.Input(
                    "strength_word",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    tooltip="Of the word. 0: it means what the learning started from (face).",
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    optional=True,
                    tooltip="What stands for it in prompts. Empty: as it was saved.",
                ),
                *[
                    io.Float.Input(
                        name,
                        default=UNTOUCHED,
                        min=UNTOUCHED,
                        max=1.0,
                        step=0.01,
                        optional=True,
                        advanced=True,
                        tooltip=f"Share of the sampling schedule {what}. -1: as the concept says.",
                    )
                    for name, what in (
                        ("start_percent", "before which the word is fixed"),
                        ("end_percent", "after which the word is frozen"),
                    )
                ],
                io.Combo.Input(
                    "needs_trigger",
                    options=[OWN, ON, OFF],
                    default=OWN,
                    optional=True,
                    tooltip="Draw pictures whose prompts do not hold the trigger as if the concept were not there. concept: as the"
                    " concept says.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Clip.Output(display_name="CLIP"),
                ConceptIO.Output(display_name="E4T_CONCEPT"),
            ],
            # What it says is then in the history of a job, too, for which ComfyUI had its result.
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, trigger: str | None = None) -> bool | str:
        return validate_trigger(trigger or None)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        concept: Concept,
        strength_model: float = 1.0,
        strength_word: float = 1.0,
        trigger: str = "",
        start_percent: float = UNTOUCHED,
        end_percent: float = UNTOUCHED,
        needs_trigger: str = OWN,
    ) -> io.NodeOutput:
        concept = dataclasses.replace(
            concept,
            trigger=trigger or concept.trigger,
            sampling=_sampling(concept.sampling, start_percent, end_percent, needs_trigger),
        )
        check_applicable(model, clip, concept.trigger)
        said: list[str] = []
        learned: dict[str, Any] = {}
        if concept.to_learn:
            with Progress(concept.trigger) as progress:
                concept = learn_again(concept, model, clip, find_domain, STORE, progress)
                said = progress.said
            learned = {LEARNED: [progress.panel.told()]}
        drawing = Drawing(weights=strength_model, word=strength_word)
        new_model, new_clip = applied(model, clip, concept, STORE, drawing)
        said = [*said, *about_base(model, concept, STORE)]
        if not said:
            said = [f"{concept.trigger} is known to this MODEL and CLIP."]
        show_text("\n".join(said))
        return io.NodeOutput(new_model, new_clip, concept, ui={"text": said, CONCEPT: card(concept), **learned})


def _sampling(own: SamplingSettings, start: float, end: float, needs_trigger: str) -> SamplingSettings:
    changes: dict[str, Any] = {
        name: value for name, value in (("start_percent", start), ("end_percent", end)) if value >= 0
    }
    if needs_trigger != OWN:
        changes["needs_trigger"] = needs_trigger == ON
    return dataclasses.replace(own, **changes)
