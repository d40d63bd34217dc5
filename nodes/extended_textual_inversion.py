"""The node "Learn Photo (Extended Textual Inversion)": a word from photos that every layer of the network reads its own way."""

from __future__ import annotations

from ..e4t_core.methods.extended_textual_inversion import ExtendedTextualInversion
from .learn_photo import LearnPhoto


class LearnExtendedTextualInversion(LearnPhoto):
    """Learns a word for each cross-attention layer; the base model stays as it is."""

    METHOD = ExtendedTextualInversion
    ABOUT = (
        "Learns a word for what is in your photos, without a domain file: another one for each layer of the network."
        " It takes fewer steps than Textual Inversion. MODEL's weights stay as they are."
    )
    ALIASES = ("extended textual inversion", "xti", "p+", "embedding", "train embedding")
