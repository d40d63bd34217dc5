"""The node "Mix E4T Concepts": the weighted average of two to four concepts."""

from __future__ import annotations

from comfy_api.latest import io

from ..e4t_core.concept import Concept
from ..e4t_core.mix import MOST, mix
from .host.node_text import show_text
from .learned import validate_trigger
from .sockets import ConceptIO


class MixConcepts(io.ComfyNode):
    """A face between faces: words and weights are averaged."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        numbers = range(1, MOST + 1)
        return io.Schema(
            node_id="E4TMixConcepts",
            display_name="Mix E4T Concepts",
            category="E4T",
            description="Averages concepts of one domain and one base model: someone who looks a little like each of them.",
            search_aliases=["mix concepts", "blend faces", "merge", "average"],
            # Widget values are stored by position: once a version is out, only append.
            inputs=[
                *[
                    ConceptIO.Input(
                        f"concept_{n}", optional=n > 2, tooltip="From Load E4T Concept, or a node that learns."
                    )
                    for n in numbers
                ],
                *[
                    io.Float.Input(
                        f"weight_{n}",
                        default=1.0,
                        min=0.0,
                        max=100.0,
                        step=0.05,
                        optional=True,
                        tooltip=f"How much of concept_{n} is in the mix; only the ratio of the weights counts.",
                    )
                    for n in numbers
                ],
                io.String.Input("trigger", default="S*", optional=True, tooltip="What stands for the mix in prompts."),
            ],
            outputs=[ConceptIO.Output(display_name="E4T_CONCEPT")],
        )

    @classmethod
    def validate_inputs(cls, trigger: str | None = None) -> bool | str:
        return validate_trigger(trigger)

    @classmethod
    def execute(
        cls,
        concept_1: Concept,
        concept_2: Concept,
        concept_3: Concept | None = None,
        concept_4: Concept | None = None,
        weight_1: float = 1.0,
        weight_2: float = 1.0,
        weight_3: float = 1.0,
        weight_4: float = 1.0,
        trigger: str = "S*",
    ) -> io.NodeOutput:
        pairs = zip((concept_1, concept_2, concept_3, concept_4), (weight_1, weight_2, weight_3, weight_4), strict=True)
        given = [(concept, weight) for concept, weight in pairs if concept is not None]
        mixed = mix([concept for concept, _ in given], [weight for _, weight in given], trigger)
        whole = sum(weight for _, weight in given)
        parts = " + ".join(f"{100 * weight / whole:.0f} % {concept.trigger}" for concept, weight in given if weight)
        said = [f"{trigger} = {parts}", *mixed.notes]
        show_text("\n".join(said))
        return io.NodeOutput(mixed, ui={"text": said})
