"""The node "Learn Photo (Perfusion)": a word from photos whose keys are locked to a common word's, by a tiny edit of attention."""

from __future__ import annotations

from ..e4t_core.methods.perfusion import Perfusion
from .learn_photo import LearnPhoto


class LearnPerfusion(LearnPhoto):
    """Learns a word and a gated edit of every cross-attention layer; the base model stays as it is."""

    METHOD = Perfusion
    ABOUT = (
        "Learns a word for what is in your photos, without a domain file, and what it looks like in each layer of the network."
        " Prompts treat it as they treat the class word; the file is 60 KB."
    )
    ALIASES = ("perfusion", "key locking", "rank one edit")
