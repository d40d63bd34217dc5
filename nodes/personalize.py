"""The node "E4T Personalize": a photo goes in, a word comes out."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..e4t_core.methods.e4t.method import E4T
from .host.learning.crops import AUTO as AUTO_CROP
from .host.learning.crops import CropChoice
from .host.learning.masks import AUTO
from .host.learning.previews import AUTO as AUTO_PREVIEWS
from .host.learning.request import LoadedDomain, Request
from .host.learning.settings_choice import SettingsChoice
from .learned import (
    LEARNED_OUTPUTS,
    crop_inputs,
    learned,
    mask_input,
    photo_inputs,
    preview_input,
    square_input,
    trigger_and_seed_inputs,
    validate_trigger,
)
from .sockets import DomainIO, SettingsIO


class Personalize(io.ComfyNode):
    """Learns one photo (or a few of the same thing) in seconds; the word then works in every stock node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="E4TPersonalize",
            display_name="E4T Personalize",
            category="E4T",
            description="Learns what is in a photo and gives it a word. Write the word into any prompt that is encoded with"
            " this node's CLIP and drawn with its MODEL.",
            search_aliases=["e4t", "personalize", "face", "likeness", "textual inversion", "dreambooth", "one photo"],
            # Widget values are stored by position: once a version is out, only append.
            inputs=[
                *photo_inputs()[:3],
                DomainIO.Input("domain", tooltip="From Load E4T Domain."),
                *photo_inputs()[3:],
                SettingsIO.Input("settings", optional=True, tooltip="Unconnected: the domain's preset."),
                *trigger_and_seed_inputs(),
                mask_input(),
                *crop_inputs(),
                preview_input(),
                square_input(),
            ],
            outputs=LEARNED_OUTPUTS,
            # What it says is then in the history of a job, too, for which ComfyUI had its result.
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, trigger: str | None = None) -> bool | str:
        return validate_trigger(trigger)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        domain: LoadedDomain,
        image: Any,
        trigger: str = "S*",
        seed: int = 0,
        mask: Any = None,
        settings: SettingsChoice | None = None,
        mask_means: str = AUTO,
        crop: str = AUTO_CROP,
        which: int = 0,
        boxes: Any = None,
        preview_every: int = AUTO_PREVIEWS,
        square: str = "",
    ) -> io.NodeOutput:
        choice, info = settings or SettingsChoice(), domain.domain.info
        request = Request(
            model,
            clip,
            vae,
            image,
            mask,
            trigger,
            E4T(domain.domain),
            choice.of(info.preset),
            seed,
            info.image_size,
            info.crop_margin,
            loaded=domain,
            sampling=choice.sampling,
            notes=choice.notes(info.preset),
            mask_means=mask_means,
            crop=CropChoice(crop, which, boxes, square),
            preview_every=preview_every,
        )
        return learned(request)
