"""The node "Learn Photo (HyperNetwork)": a word from one photo at once, with a domain whose weights depend on the photo."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..e4t_core.methods.e4t.hypernetwork import HyperNetwork, HyperNetworkSettings, check_form
from ..e4t_core.settings import settings_of
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
    trigger_and_seed_inputs,
    validate_trigger,
)
from .sockets import DomainIO, SettingsIO
from .widgets import inputs_of

# All but the steps, which decide whether there is an answer at once.
BY_SETTINGS = tuple(name for name in settings_of(HyperNetworkSettings) if name != "steps")


class LearnHyperNetwork(io.ComfyNode):
    """Learns one photo (or a few of the same thing) without tuning, or with a little of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="E4THyperNetwork",
            display_name="Learn Photo (HyperNetwork)",
            category="E4T",
            description="Learns a word for what is in a photo at once, without tuning. It needs a domain file that was trained as a"
            " HyperNetwork; with any other, use E4T Personalize.",
            search_aliases=["hypernetwork", "instant", "one photo", "learn photo"],
            # Widget values are stored by position: once a version is out, only append.
            inputs=[
                *photo_inputs()[:3],
                DomainIO.Input("domain", tooltip="From Load E4T Domain: one that was trained as a HyperNetwork."),
                *photo_inputs()[3:],
                SettingsIO.Input(
                    "settings", optional=True, tooltip="Unconnected: the domain's preset, but for the steps."
                ),
                *trigger_and_seed_inputs(),
                *inputs_of(HyperNetworkSettings, leave_out=BY_SETTINGS),
                mask_input(),
                *crop_inputs(),
                preview_input(),
            ],
            outputs=LEARNED_OUTPUTS,
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
        steps: int = HyperNetworkSettings().steps,
        mask: Any = None,
        settings: SettingsChoice | None = None,
        mask_means: str = AUTO,
        crop: str = AUTO_CROP,
        which: int = 0,
        boxes: Any = None,
        preview_every: int = AUTO_PREVIEWS,
    ) -> io.NodeOutput:
        # Before any work: the photo's features alone take a while.
        check_form(domain.domain)
        choice, info = settings or SettingsChoice(), domain.domain.info
        request = Request(
            model,
            clip,
            vae,
            image,
            mask,
            trigger,
            HyperNetwork(domain.domain),
            HyperNetworkSettings.of(choice.of(info.preset), steps),
            seed,
            info.image_size,
            info.crop_margin,
            loaded=domain,
            sampling=choice.sampling,
            notes=choice.notes(info.preset),
            mask_means=mask_means,
            crop=CropChoice(crop, which, boxes),
            preview_every=preview_every,
        )
        return learned(request)
