"""A concept's weight changes as a hook on conditionings: ComfyUI puts them into the network for those alone, and takes them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.hooks

Patches = Mapping[float, Mapping[str, Any]]
"""Strength -> the model's key -> a patch."""


class ConceptHook(comfy.hooks.WeightHook):
    """What one concept adds to a MODEL's weights.

    ComfyUI clones hooks by calling their class without arguments (comfy/hooks.py).

    Args:
        patches: sets of patches, one after the other; shared, not copied.
    """

    def __init__(self, patches: Sequence[Patches] = ()) -> None:
        super().__init__()
        self.need_weight_init = False
        self.patches = tuple(patches)

    def add_hook_patches(self, model: Any, model_options: Any, target_dict: Any, registered: Any) -> bool:
        """ComfyUI asks for it when sampling begins."""
        if not self.should_register(model, model_options, target_dict, registered):
            return False
        for part in self.patches:
            for strength, patches in part.items():
                model.add_hook_patches(hook=self, patches=patches, strength_patch=strength)
        registered.add(self)
        return True

    def clone(self) -> ConceptHook:
        """As ComfyUI's, with the patches."""
        made: ConceptHook = super().clone()
        made.patches = self.patches
        return made
