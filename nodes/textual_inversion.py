"""The node "Learn Photo (Textual Inversion)": a word from photos, on any base model, without a domain file."""

from __future__ import annotations

from ..e4t_core.methods.textual_inversion import TextualInversion
from .learn_photo import LearnPhoto


class LearnTextualInversion(LearnPhoto):
    """Learns a word for what photos show, in minutes; the base model stays as it is."""

    METHOD = TextualInversion
    ABOUT = (
        "Learns a word for what is in your photos, without a domain file. Only the word is learned, so it takes longer than"
        " E4T Personalize and is less of a likeness; MODEL stays as it is."
    )
    ALIASES = ("textual inversion", "embedding", "train embedding")
