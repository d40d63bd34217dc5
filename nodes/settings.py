"""The node "E4T Settings": what is to be other than the domain's preset, and how the word is drawn."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..e4t_core.loop_settings import SamplingSettings
from ..e4t_core.methods.e4t.settings import PRESETS, TuningSettings
from ..e4t_core.settings import settings_of
from .host.learning.settings_choice import SettingsChoice
from .host.node_text import show_text
from .sockets import SettingsIO
from .widgets import inputs_of, preset_inputs_of, touched

OWN = "the domain's own"


class Settings(io.ComfyNode):
    """Expert values; without this node the domain's own preset is used."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="E4TSettings",
            display_name="E4T Settings",
            category="E4T",
            description="Changes single values of E4T Personalize; every other value stays the preset's.",
            search_aliases=["e4t options", "tuning settings", "personalization settings"],
            # Widget values are stored by position: once a version is out, only append.
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=[OWN, *PRESETS],
                    default=OWN,
                    optional=True,
                    tooltip="Where all values come from that are not set below. The domain's own suits its base model.",
                ),
                *preset_inputs_of(TuningSettings),
                *inputs_of(SamplingSettings),
            ],
            outputs=[SettingsIO.Output(display_name="settings")],
        )

    @classmethod
    def execute(cls, preset: str = OWN, **values: Any) -> io.NodeOutput:
        sampling = {name: values[name] for name in settings_of(SamplingSettings) if name in values}
        choice = SettingsChoice(
            "" if preset == OWN else preset, touched(TuningSettings, values), SamplingSettings(**sampling)
        )
        show_text(choice.told())
        return io.NodeOutput(choice, ui={"text": [choice.told()]})
