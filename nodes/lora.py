"""The node "Learn Photo (LoRA)": thin matrices beside the base model's own learn the photos."""

from __future__ import annotations

from ..e4t_core.methods.lora import LoRA
from .learn_photo import LearnPhoto


class LearnLoRA(LearnPhoto):
    """Learns a LoRA of a few megabytes from photos."""

    METHOD = LoRA
    ABOUT = (
        "Learns a LoRA from your photos, without a domain file. It takes minutes, and the file is a few megabytes; Export E4T"
        " Concept writes it as a stock LoRA."
    )
    ALIASES = ("lora", "train lora", "fine-tune")
