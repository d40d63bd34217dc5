"""The node "E4T Regions": several people in one picture, each in a region of its own."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..e4t_core.attention_changes import GatedEdit
from ..e4t_core.concept import Concept
from .host.learning.apply import check_applicable
from .host.learning.result_store import STORE
from .host.node_text import show_text
from .host.regions.layout import ACROSS, LAYOUTS, drawn, given
from .host.regions.regional import Region, regional
from .sockets import ConceptIO

MOST = 4
OWN, WHOLE = "a picture of its own", "sees the whole picture"


class Regions(io.ComfyNode):
    """Two to four concepts in one picture: word, refinement and weights of each act in its region alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        numbers = range(1, MOST + 1)
        return io.Schema(
            node_id="E4TRegions",
            display_name="E4T Regions",
            category="E4T",
            description="Draws several concepts in one picture, each in a region of its own: nobody takes anybody's face. Wire the"
            " outputs into any sampler.",
            search_aliases=["two people", "regional prompt", "couple", "area"],
            # Widget values are stored by position: once a version is out, only append.
            inputs=[
                io.Model.Input("model", tooltip="The base model that the concepts were learned on; without them."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Conditioning.Input(
                    "positive", tooltip="What the picture shows where nobody's region is ('two people in a garden')."
                ),
                io.Conditioning.Input("negative", tooltip="What it does not show, everywhere."),
                *[
                    ConceptIO.Input(
                        f"concept_{n}", optional=n > 2, tooltip="From a node that learns, or from Load E4T Concept."
                    )
                    for n in numbers
                ],
                *[
                    io.Mask.Input(
                        f"mask_{n}",
                        optional=True,
                        tooltip=f"Where concept_{n} is to be. For all concepts, or for none: then 'layout' says it.",
                    )
                    for n in numbers
                ],
                io.String.Input(
                    "prompts",
                    default="a photo of {}",
                    multiline=True,
                    tooltip="What each region shows; {} is its concept. One line for all, or a line for each concept.",
                ),
                io.Combo.Input(
                    "layout",
                    options=list(LAYOUTS),
                    default=ACROSS,
                    optional=True,
                    tooltip="How regions lie that have no masks.",
                ),
                io.Combo.Input(
                    "each_region",
                    options=[OWN, WHOLE],
                    default=OWN,
                    optional=True,
                    tooltip=f"'{OWN}': most alike; make each region as large as a picture of this model (512 x 512)."
                    f" '{WHOLE}': for small regions, and people who touch.",
                ),
                io.Float.Input(
                    "feather",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="How softly regions end, as a share of a region.",
                ),
                io.Float.Input(
                    "background",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="How much the positive prompt counts within regions, too. Higher makes one picture of them, and people"
                    " less alike.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Mask.Output(display_name="masks", tooltip="The regions, to look at."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        positive: Any,
        negative: Any,
        concept_1: Concept,
        concept_2: Concept,
        prompts: str,
        concept_3: Concept | None = None,
        concept_4: Concept | None = None,
        mask_1: Any = None,
        mask_2: Any = None,
        mask_3: Any = None,
        mask_4: Any = None,
        layout: str = ACROSS,
        each_region: str = OWN,
        feather: float = 0.1,
        background: float = 0.0,
    ) -> io.NodeOutput:
        wired = zip((concept_1, concept_2, concept_3, concept_4), (mask_1, mask_2, mask_3, mask_4), strict=True)
        pairs = [(concept, mask) for concept, mask in wired if concept is not None]
        concepts = [concept for concept, _ in pairs]
        for number, concept in enumerate(concepts, 1):
            _check(concept, number, concepts)
            check_applicable(model, clip, concept.trigger)
        masks = [mask for _, mask in pairs]
        if any(mask is not None for mask in masks):
            areas = given(masks, feather)
        else:
            areas = drawn(len(concepts), layout, feather)
        lines = _lines(prompts, concepts)
        regions = [Region(*parts) for parts in zip(concepts, lines, areas, strict=True)]
        made = regional(model, clip, positive, negative, regions, STORE, background, each_region == OWN)
        show_text("\n".join(f"{concept.trigger}: {line}" for concept, line in zip(concepts, lines, strict=True)))
        height, width = max(a.shape[0] for a in areas), max(a.shape[1] for a in areas)
        alike = [torch.nn.functional.interpolate(a[None, None], size=(height, width))[0] for a in areas]
        return io.NodeOutput(*made, torch.cat(alike))


def _check(concept: Concept, number: int, concepts: list[Concept]) -> None:
    if concept.to_learn:
        raise ValueError(
            f"concept_{number} ({concept.trigger}) is a recipe that was not learned again yet: wire it through Apply E4T Concept."
        )
    if isinstance(concept.attention, GatedEdit):
        raise ValueError(
            f"concept_{number} ({concept.trigger}) was learned by Perfusion, which E4T Regions cannot draw in a part of a picture:"
            " wire in a concept of another method."
        )
    first = next(n for n, other in enumerate(concepts, 1) if other.fingerprint == concept.fingerprint)
    if first != number:
        raise ValueError(
            f"concept_{number} is the same as concept_{first}: paint both places into mask_{first}, and leave concept_{number}"
            " empty."
        )


def _lines(prompts: str, concepts: list[Concept]) -> list[str]:
    """A prompt for each concept, in which its word stands."""
    lines = [line.strip() for line in prompts.splitlines() if line.strip()] or ["a photo of {}"]
    if len(lines) == 1:
        lines *= len(concepts)
    if len(lines) != len(concepts):
        raise ValueError(
            f"prompts has {len(lines)} lines for {len(concepts)} concepts: write one line for all, or one for each."
        )
    made = []
    for line, concept in zip(lines, concepts, strict=True):
        if "{}" not in line and concept.trigger not in line:
            raise ValueError(
                f"The prompt {line!r} does not name its concept: write {{}} or {concept.trigger} where it is to stand."
            )
        made.append(line.replace("{}", concept.trigger))
    return made
