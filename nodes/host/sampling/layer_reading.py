"""What cross-attention layers read of prompts in which a concept stands that says something of single layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ....e4t_core.attention_changes import GatedEdit, LayerWords
from ..prompt.encoded_prompt import EncodedPrompt
from ..prompt.recognition import Recipe
from .held_concept import HeldConcept
from .layer_patch import Layered, Place, layer_places
from .regions import Region

# Conditionings whose layers are remembered; where a node cuts new ones at every step, they are made anew.
REMEMBERED = 16

# A prompt and words ``(1, V, D)`` of a layer by concept -> its context, ``(B, T, D)`` or ``(1, T, D)``.
EncodeWith = Callable[[EncodedPrompt, Mapping[str, Tensor]], Tensor]


@dataclass(eq=False)
class LayerReading:
    """Of the concepts of one MODEL, within one sampling run; make a new one per run.

    Attributes:
        concepts: by fingerprint, those that say something of layers.
    """

    concepts: Mapping[str, HeldConcept]
    _places: dict[Place, str] | None = None
    _known: dict[int, tuple[Recipe, Layered]] = field(default_factory=dict)

    @classmethod
    def of(cls, held: Iterable[HeldConcept]) -> LayerReading:
        """Of all that a MODEL holds."""
        return cls({one.concept.fingerprint: one for one in held if one.concept.attention is not None})

    def places(self, parameters: Callable[[], Iterable[str]]) -> dict[Place, str]:
        """The network's layers, looked through once; none, if no concept says anything of them.

        Args:
            parameters: native names of the network's weights.
        """
        if self._places is None:
            self._places = layer_places(parameters()) if self.concepts else {}
        return self._places

    def stands_in(self, recipe: Recipe) -> bool:
        """Whether such a concept stands in a conditioning."""
        return any(key in self.concepts for prompt in recipe.prompts() for key in prompt.concepts)

    def layered(
        self,
        recipe: Recipe,
        given: Tensor,
        fresh: Mapping[EncodedPrompt, Tensor],
        encode: EncodeWith,
        failed: Mapping[EncodedPrompt, str],
        region: Region | None = None,
    ) -> Layered | None:
        """What each layer reads in place of a conditioning; None: no layer reads its own.

        Args:
            recipe: how the conditioning is made of prompts.
            given: it as cross-attention is given it at this evaluation.
            fresh: prompts with words of this evaluation; without any, the answer is remembered.
            encode: see above; a prompt that it fails for is left as it is.
            failed: such prompts.
            region: of another node that gives it to cross-attention.
        """
        known = self._known.get(id(recipe))
        if known is not None and not fresh:
            return known[1]
        prompts = [prompt for prompt in recipe.prompts() if any(key in self.concepts for key in prompt.concepts)]
        prompts = [prompt for prompt in prompts if prompt not in failed and prompt.encode is not None]
        if not prompts:
            return None
        keys: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        for layer in (self._places or {}).values():
            read = {prompt: self._read(prompt, layer, fresh, encode) for prompt in prompts}
            keys[layer], values[layer] = (
                recipe.rebuild({**fresh, **{prompt: both[part] for prompt, both in read.items()}}) for part in (0, 1)
            )
        made = Layered(given, keys, values, region)
        if not fresh:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            # With the recipe itself, so that its id cannot be given to another one.
            self._known[id(recipe)] = (recipe, made)
        return made

    def _read(
        self, prompt: EncodedPrompt, layer: str, fresh: Mapping[EncodedPrompt, Tensor], encode: EncodeWith
    ) -> tuple[Tensor, Tensor]:
        """A prompt as a layer's keys and its values read it."""
        changes = {key: self.concepts[key] for key in prompt.concepts if key in self.concepts}
        words = {}
        for key, held in changes.items():
            own = held.concept.attention
            word = own.at(layer) if isinstance(own, LayerWords) else None
            if word is not None:
                words[key] = word[None]
        context = encode(prompt, words) if words else fresh.get(prompt, prompt.static)
        keys = values = context
        for held in changes.values():
            edit = held.concept.attention
            # In a region of its own a concept's weights are at full strength there, and none in the MODEL.
            strength = held.strength if held.place is None else 1.0
            if isinstance(edit, GatedEdit) and strength:
                by_key, by_value = edit.edited(layer, context, strength)
                # Of several words each edit adds what it changes.
                keys, values = (
                    made if part is context else part + (made - context)
                    for part, made in ((keys, by_key), (values, by_value))
                )
        return keys, values


def rows_of(words: Mapping[str, Tensor], latents: Sequence[int]) -> dict[str, Tensor]:
    """The words of some latents; one that is the same for all stays."""
    return {key: word if word.shape[0] == 1 else word[latents] for key, word in words.items()}
