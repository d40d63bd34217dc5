"""The nodes "Learn Photo (...)", one for each method of ``e4t_core.methods.registered.SIBLINGS``."""

from __future__ import annotations

from .extended_textual_inversion import LearnExtendedTextualInversion
from .learn_photo import LearnPhoto
from .perfusion import LearnPerfusion
from .textual_inversion import LearnTextualInversion

LEARNING_NODES: tuple[type[LearnPhoto], ...] = (LearnTextualInversion, LearnExtendedTextualInversion, LearnPerfusion)
