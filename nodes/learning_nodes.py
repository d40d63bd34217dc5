"""The nodes "Learn Photo (...)", one for each method of ``e4t_core.methods.registered.SIBLINGS``."""

from __future__ import annotations

from .dreambooth import LearnDreamBooth
from .dreambooth_ti import LearnDreamBoothTI
from .learn_photo import LearnPhoto
from .lora import LearnLoRA
from .textual_inversion import LearnTextualInversion

LEARNING_NODES: tuple[type[LearnPhoto], ...] = (LearnTextualInversion, LearnLoRA, LearnDreamBooth, LearnDreamBoothTI)
