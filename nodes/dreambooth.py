"""The node "Learn Photo (DreamBooth)": all weights of the base model learn the photos."""

from __future__ import annotations

from ..e4t_core.methods.dreambooth import DreamBooth
from .learn_photo import LearnPhoto


class LearnDreamBooth(LearnPhoto):
    """Learns photos with all of the UNet, and keeps the class by pictures that the base model draws before."""

    METHOD = DreamBooth
    ABOUT = (
        "Learns your photos with all weights of the model, without a domain file: close to them, slow, and large on disk. The base"
        " model draws pictures of the class first, once, so that others of it stay as they are."
    )
    ALIASES = ("dreambooth", "fine-tune", "train model", "prior preservation")
