"""The nodes "Learn Photo (...)", one for each method of ``e4t_core.methods.registered.SIBLINGS``."""

from __future__ import annotations

from .dreambooth import LearnDreamBooth
from .dreambooth_ti import LearnDreamBoothTI
from .extended_textual_inversion import LearnExtendedTextualInversion
from .learn_photo import LearnPhoto
from .lora import LearnLoRA
from .perfusion import LearnPerfusion
from .textual_inversion import LearnTextualInversion

LEARNING_NODES: tuple[type[LearnPhoto], ...] = (
    LearnTextualInversion,
    LearnExtendedTextualInversion,
    LearnPerfusion,
    LearnLoRA,
    LearnDreamBooth,
    LearnDreamBoothTI,
)
