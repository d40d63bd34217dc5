"""What every node that learns a photo has in common: inputs, outputs, and the check of its trigger."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .host.learning.masks import AUTO, LEARN_HERE, LEAVE_OUT, MASK_MEANINGS
from .host.learning.result_store import ResultStore
from .host.prompt import concept_clip
from .host.sampling import patched_model
from .host.sampling.held_concept import HeldConcept
from .sockets import ConceptIO

LEARNED_OUTPUTS = [
    io.Model.Output(display_name="MODEL"),
    io.Clip.Output(display_name="CLIP"),
    ConceptIO.Output(display_name="E4T_CONCEPT"),
    io.LossMap.Output(display_name="LOSS_MAP"),
]


def photo_inputs() -> list[io.Input]:
    """The base model's three parts, the photo and its mask."""
    return [
        io.Model.Input("model", tooltip="A Stable Diffusion 1.x or 2.x base model, also with LoRAs."),
        io.Clip.Input("clip", tooltip="Its text encoder."),
        io.Vae.Input("vae", tooltip="Its VAE."),
        io.Image.Input(
            "image",
            tooltip="The photo. A batch (Batch Images) is several photos of ONE person or thing; a LIST of photos runs this node"
            " once for each, and gives a concept of its own for each. Where a picture is transparent nothing is learned.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="1 = learn here; the crop follows it. Paint over the subject in Load Image's mask editor. A cut-out picture's"
            " mask marks the background: that is recognized, and said on the node.",
        ),
    ]


def trigger_and_seed_inputs() -> list[io.Input]:
    """What the concept is called, and the seed of its learning."""
    return [
        io.String.Input(
            "trigger",
            default="S*",
            tooltip="What stands for the photo in prompts; capitals count. embedding:e4t/ and the trigger works as well.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            # Randomized after every queue, it would make every queue learn again.
            control_after_generate=io.ControlAfterGenerate.fixed,
            tooltip="Of the learning. The same inputs and seed give the same concept.",
        ),
    ]


def mask_input() -> io.Input:
    """What the mask marks; for those whose mask is taken for something else."""
    return io.Combo.Input(
        "mask_means",
        options=list(MASK_MEANINGS),
        default=AUTO,
        optional=True,
        advanced=True,
        tooltip=f"What the mask marks. '{AUTO}': where to learn, unless it covers the border and spares the middle."
        f" '{LEARN_HERE}': always where to learn. '{LEAVE_OUT}': what to leave out.",
    )


def validate_trigger(trigger: str | None) -> bool | str:
    """A trigger's fault as one sentence, or True; a linked value is None here, and is checked when it is known."""
    try:
        if trigger is not None:
            concept_clip.check_alias(trigger)
    except ValueError as error:
        return str(error)
    return True


def learned_output(model: Any, clip: Any, held: HeldConcept, store: ResultStore) -> io.NodeOutput:
    """MODEL and CLIP that know a concept, the concept, and its losses."""
    concept = held.concept
    new_clip = concept_clip.with_concept(clip, concept.trigger, concept.fingerprint, concept.embedding, store.prompts)
    new_model = patched_model.with_concept(model, held, store.prompts)
    return io.NodeOutput(new_model, new_clip, held, {"loss": list(concept.losses)})
