"""What every node that learns a photo has in common: inputs, outputs, the check of its trigger, and how it runs."""

from __future__ import annotations

from comfy_api.latest import io

from ..e4t_core.trigger import TriggerError, check_trigger
from .host.learning.apply import applied
from .host.learning.crops import AUTO as AUTO_CROP
from .host.learning.crops import BOX, CROPS, MIDDLE, SUBJECT
from .host.learning.learn import learn
from .host.learning.masks import AUTO, LEARN_HERE, LEAVE_OUT, MASK_MEANINGS
from .host.learning.previews import AUTO as AUTO_PREVIEWS
from .host.learning.previews import NEVER
from .host.learning.progress import Progress
from .host.learning.request import Request
from .host.learning.result_store import STORE
from .host.live_view import LEARNED
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


def crop_inputs() -> list[io.Input]:
    """Which part of a photo without a mask is learned."""
    return [
        io.Combo.Input(
            "crop",
            options=list(CROPS),
            default=AUTO_CROP,
            optional=True,
            tooltip=f"What the square that is learned follows where there is no mask. '{AUTO_CROP}': a square photo is learned as it is; in"
            f" any other the domain looks for its subject. '{SUBJECT}': it looks in square photos, too. '{MIDDLE}': nothing, the middle"
            f" of the photo is taken. '{BOX}': exactly the box that is wired in.",
        ),
        io.Int.Input(
            "which",
            default=0,
            min=0,
            max=99,
            optional=True,
            tooltip="Which subject, if the photo shows several: 1 is the first from the left. 0: the largest.",
        ),
        io.BoundingBox.Input(
            "boxes",
            optional=True,
            force_input=True,
            tooltip="Boxes around subjects, from a node that detects faces or objects, in place of the domain's own search.",
        ),
    ]


def square_input() -> io.Input:
    """What a person has drawn in the crop editor."""
    return io.String.Input(
        "square",
        default="",
        optional=True,
        advanced=True,
        tooltip="The square that is learned, as left, top and side in pixels of the photo: what the crop editor draws. Empty: as"
        " 'crop' says. A mask decides before it.",
    )


def preview_input() -> io.Input:
    """How often the browser is shown what would be drawn now."""
    return io.Int.Input(
        "preview_every",
        default=AUTO_PREVIEWS,
        min=NEVER,
        max=10000,
        optional=True,
        advanced=True,
        tooltip="Steps between two small previews of what would be drawn now. 0: as often as takes about 3 % of the time."
        " -1: never. What is learned is the same.",
    )


def validate_trigger(trigger: str | None) -> bool | str:
    """A trigger's fault as one sentence, or True; a linked value is None here, and is checked when it is known."""
    try:
        if trigger is not None:
            check_trigger(trigger)
    except TriggerError as error:
        return str(error)
    return True


def learned(request: Request) -> io.NodeOutput:
    """Learns what is asked: MODEL and CLIP that know the concept, the concept, and its losses."""
    with Progress(request.trigger) as progress:
        concept = learn(request, STORE, progress)
        model, clip = applied(request.model, request.clip, concept, STORE)
    # With the text in the outputs, a script finds it in the job's history.
    return io.NodeOutput(
        model,
        clip,
        concept,
        {"loss": list(concept.losses)},
        ui={"text": progress.said, LEARNED: [progress.panel.told()]},
    )
