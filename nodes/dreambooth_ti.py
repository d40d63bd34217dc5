"""The node "Learn Photo (DreamBooth + Textual Inversion)": the base model's weights and a word learn the photos at once."""

from __future__ import annotations

from ..e4t_core.methods.dreambooth_ti import DreamBoothTI
from .learn_photo import LearnPhoto


class LearnDreamBoothTI(LearnPhoto):
    """Learns photos with all of the UNet and a word of its own."""

    METHOD = DreamBoothTI
    ABOUT = (
        "Learns your photos with all weights of the model and a new word, without a domain file. As Learn Photo (DreamBooth), and"
        " often with fewer steps."
    )
    ALIASES = ("dreambooth", "textual inversion", "pivotal tuning", "fine-tune")
