"""What the nodes "Learn Photo (...)" have in common: each learns by one of E4T's siblings, without a domain file.

There is one node for each method. One node with a choice of methods (ComfyUI's DynamicCombo) was tried in the page: it forgets what
was set when the method changes, its API inputs are called ``method.steps``, and, because widgets are stored by position, a
setting more in one method would move the values of old workflows. As nodes, methods are found by name and have a help page each.
"""

from __future__ import annotations

from typing import Any, ClassVar

from comfy_api.latest import io

from ..e4t_core.crop import CROP_MARGIN
from ..e4t_core.methods.registered import node_id
from ..e4t_core.sibling import Sibling
from .host.learning.masks import AUTO
from .host.learning.previews import AUTO as AUTO_PREVIEWS
from .host.learning.request import Request
from .learned import (
    LEARNED_OUTPUTS,
    learned,
    mask_input,
    photo_inputs,
    preview_input,
    trigger_and_seed_inputs,
    validate_trigger,
)
from .widgets import inputs_of


class LearnPhoto(io.ComfyNode):
    """A node for one method; its settings are the node's widgets."""

    METHOD: ClassVar[type[Sibling]]
    ABOUT: ClassVar[str]
    """What it does, in a sentence or two."""
    ALIASES: ClassVar[tuple[str, ...]] = ()
    """What people look for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=node_id(cls.METHOD),
            display_name=f"Learn Photo ({cls.METHOD.title})",
            category="E4T",
            description=cls.ABOUT,
            search_aliases=[*cls.ALIASES, "learn photo"],
            # Widget values are stored by position: once a version is out, only append.
            inputs=[
                *photo_inputs(),
                *trigger_and_seed_inputs(),
                io.String.Input(
                    "class_word",
                    default="face",
                    tooltip="What kind of thing the photos show, in one common word (face, dog, cup). The learning starts there.",
                ),
                io.Int.Input(
                    "size",
                    default=512,
                    min=64,
                    max=2048,
                    step=64,
                    tooltip="Side of the square that is cut from each photo, in pixels: what the base model was trained at (512;"
                    " 768 for SD 2.1-v).",
                ),
                *inputs_of(cls.METHOD.Settings),
                mask_input(),
                preview_input(),
            ],
            outputs=LEARNED_OUTPUTS,
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, trigger: str | None = None) -> bool | str:
        return validate_trigger(trigger)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        image: Any,
        trigger: str = "S*",
        seed: int = 0,
        class_word: str = "face",
        size: int = 512,
        mask: Any = None,
        mask_means: str = AUTO,
        preview_every: int = AUTO_PREVIEWS,
        **values: Any,
    ) -> io.NodeOutput:
        word = class_word.strip()
        request = Request(
            model,
            clip,
            vae,
            image,
            mask,
            trigger,
            cls.METHOD(word),
            cls.METHOD.Settings(**values),
            seed,
            size,
            CROP_MARGIN,
            decides=(word,),
            mask_means=mask_means,
            preview_every=preview_every,
        )
        return learned(request)
