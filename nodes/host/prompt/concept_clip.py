"""A CLIP that knows concepts: their triggers in prompts, and which prompts it has encoded.

It is ComfyUI's own CLIP in every other respect: LoRA loaders, clip skip and every text-encode node keep working, and
what it gives them is ordinary conditioning with the static embedding in the trigger's place.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.sd
import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ....e4t_core.trigger import check_trigger
from .drawn_elsewhere import tell_if_drawn_elsewhere
from .encoded_prompt import MARK, EncodedPrompt, SharedModels
from .prompt_memory import PromptMemory
from .reencoding import Keyframes, Place, Reencoding, encoder_methods
from .triggers import embedding_file, near_misses, rewrite_triggers, tokenizer_with_concepts

KEY = "e4t"
# A token vector that another node has scaled points in the same direction up to rounding: the cosine's distance from 1.
SAME_DIRECTION = 1e-10


class TriggerTakenError(ValueError):
    """A trigger that already stands for another concept in this CLIP."""


@dataclass(frozen=True, eq=False)
class KnownConcept:
    """A concept as a CLIP knows it.

    Attributes:
        trigger: how it is written in prompts.
        fingerprint: content hash of the concept.
        embedding: static embedding ``(V, D)``; its rows stand in token lists.
    """

    trigger: str
    fingerprint: str
    embedding: Tensor

    @property
    def token(self) -> Tensor:
        """What the tokenizer is given: ``(D,)`` for one token, ``(V, D)`` for several."""
        return self.embedding[0] if self.embedding.shape[0] == 1 else self.embedding


class Tokens(dict[str, Any]):
    """A CLIP's tokens by text encoder, with what the prompt's text said; other packs see an ordinary dictionary.

    Attributes:
        triggers: of concepts in the text.
        near: trigger -> what stands in its place, in other upper and lower case.
    """

    triggers: frozenset[str] = frozenset()
    near: dict[str, str] = {}  # noqa: RUF012 - replaced, never changed


class ConceptCLIP(comfy.sd.CLIP):
    """ComfyUI's CLIP plus concepts. Made by :func:`with_concept`; never changes the CLIP it was made from."""

    concepts: dict[str, KnownConcept]
    memory: PromptMemory
    stock_tokenizer: Any

    @classmethod
    def of(cls, clip: comfy.sd.CLIP, memory: PromptMemory) -> ConceptCLIP:
        """A clone of a CLIP, with its concepts if it has any."""
        new = cls(no_init=True)
        plain = comfy.sd.CLIP.clone(clip)
        for name, value in vars(plain).items():
            setattr(new, name, value)
        new.memory = memory
        new.concepts = dict(getattr(clip, "concepts", {}))
        new.stock_tokenizer = getattr(clip, "stock_tokenizer", clip.tokenizer)
        return new

    def clone(self, disable_dynamic: bool = False) -> ConceptCLIP:
        """As the stock one; the concepts come along."""
        new = ConceptCLIP(no_init=True)
        for name, value in vars(super().clone(disable_dynamic=disable_dynamic)).items():
            setattr(new, name, value)
        new.concepts, new.memory, new.stock_tokenizer = self.concepts, self.memory, self.stock_tokenizer
        return new

    def tokenize(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> Any:
        """As the stock one; triggers are rewritten to ``embedding:e4t/<trigger>`` first."""
        inner = getattr(self.stock_tokenizer, self.stock_tokenizer.clip)
        written, found = rewrite_triggers(
            text, self.concepts, lambda name: embedding_file(name, inner.embedding_directory)
        )
        tokens = super().tokenize(written, return_word_ids, **kwargs)
        if type(tokens) is not dict:
            return tokens
        told = Tokens(tokens)
        told.triggers, told.near = found, near_misses(text, self.concepts.keys() - found)
        return told

    def encode_from_tokens(self, tokens: Any, return_pooled: Any = False, return_dict: bool = False) -> Any:
        """As the stock one; what comes out is remembered, and a dictionary is marked with it."""
        result = super().encode_from_tokens(tokens, return_pooled=return_pooled, return_dict=True)
        marks = self._remember(tokens, result["cond"])
        if return_dict:
            return {**result, **marks}
        return (result["cond"], result["pooled_output"]) if return_pooled else result["cond"]

    def encode_from_tokens_scheduled(self, tokens: Any, *arguments: Any, **options: Any) -> list[list[Any]]:
        """As the stock one; with a schedule of hooks, each of its ranges is a prompt that is remembered.

        Stock code then calls the text encoder directly (ComfyUI, comfy/sd.py), past ``encode_from_tokens``.
        """
        entries = super().encode_from_tokens_scheduled(tokens, *arguments, **options)
        hooks = self.patcher.forced_hooks
        if hooks is None or not self.use_clip_schedule:
            return entries
        frames = {tuple(times): held for times, held in hooks.get_hooks_for_clip_schedule()}
        marked = []
        for static, extra in entries:
            held = frames[(extra["clip_start_percent"], extra["clip_end_percent"])]
            marked.append([static, {**extra, **self._remember(tokens, static, held)}])
        return marked

    def encode_again(self, prompt: Reencoding, words: dict[str, Tensor], company: Sequence[object]) -> Tensor:
        """A prompt that this CLIP has encoded, with other word embeddings: see :meth:`Reencoding.encode`."""
        return prompt.encode(words, company)

    def _remember(self, tokens: Any, given: Tensor, keyframes: Keyframes = ()) -> dict[str, Any]:
        """Remember a prompt; what to add to its conditioning."""
        if not torch.is_tensor(given) or given.ndim != 3:
            return {}
        static = given.detach().to("cpu", copy=True)
        sections = _sections(tokens, self.tokenizer.clip_name)
        places, concepts = self._places(sections or [])
        # Some packs keep a prompt's tokens to themselves; the text still told of a trigger.
        hidden: frozenset[str] = (
            getattr(tokens, "triggers", frozenset()) - set(concepts.values()) if not places else frozenset()
        )
        concepts |= {self.concepts[trigger].fingerprint: trigger for trigger in hidden}
        even = sections is not None and static.shape[0] == 1 and static.shape[1] % len(sections) == 0
        recipe = self._recipe(tokens, sections, places, static, keyframes) if even and sections and places else None
        near = {self.concepts[trigger].fingerprint: said for trigger, said in getattr(tokens, "near", {}).items()}
        prompt = EncodedPrompt(
            static[:1],
            len(sections) if even and sections else 1,
            concepts,
            partial(recipe.clip.encode_again, recipe) if recipe else None,
            self.cond_stage_model,
            _by_section(places, len(sections)) if even and sections and not hidden else (),
            near,
        )
        if static.shape[0] == 1:
            self.memory.remember(prompt, given)
        # The text encoder is needed at every evaluation: it asks to be held in memory together with the UNet.
        return {MARK: (prompt,)} | ({"additional_models": SharedModels([self.patcher])} if concepts else {})

    def _recipe(
        self, tokens: Any, sections: list[list[Any]], places: tuple[Place, ...], static: Tensor, keyframes: Keyframes
    ) -> Reencoding:
        methods, own = encoder_methods(self.cond_stage_model)
        kept = {**tokens, self.tokenizer.clip_name: [list(section) for section in sections]}
        # The prompt's own view of this CLIP, clip skip as it is now.
        return Reencoding(
            copy.copy(self), kept, places, static, keyframes, methods, own and not self.patcher.object_patches
        )

    def _places(self, sections: list[list[Any]]) -> tuple[tuple[Place, ...], dict[str, str]]:
        """Where the concepts' tokens stand, and fingerprint -> trigger of these concepts."""
        places, concepts = [], {}
        for number, section in enumerate(sections):
            for position, item in enumerate(section):
                found = self._concept_of(item[0])
                if found:
                    known, vector, factor = found
                    places.append(Place(number, position, known.fingerprint, vector, factor))
                    concepts[known.fingerprint] = known.trigger
        return tuple(places), concepts

    def _concept_of(self, token: Any) -> tuple[KnownConcept, int, float] | None:
        """(concept, which of its vectors, factor) of a concept's token, copied or scaled by another pack or not."""
        vector = token.get("data") if isinstance(token, dict) else token
        if not torch.is_tensor(vector):
            return None
        # Two concepts may have the same static embedding: the very tensor counts first.
        for known in self.concepts.values():
            for index, row in enumerate(known.embedding):
                if vector.data_ptr() == row.data_ptr() and vector.numel() == row.numel():
                    return known, index, 1.0
        flat = vector.detach().to("cpu", torch.float32).reshape(-1)
        for known in self.concepts.values():
            if flat.shape[0] != known.embedding.shape[1]:
                continue
            for index, row in enumerate(known.embedding):
                if torch.equal(flat, row):
                    return known, index, 1.0
                a, b = flat.double(), row.double()
                along, size = float(a @ b), float(a @ a) * float(b @ b)
                if along > 0 and size - along**2 < SAME_DIRECTION * size:
                    return known, index, along / float(b @ b)
        return None


def _sections(tokens: Any, name: str) -> list[list[Any]] | None:
    """The tokens of one text encoder, section by section; None if they are not as ComfyUI's tokenizer gives them."""
    sections = tokens.get(name) if isinstance(tokens, dict) else None
    if not isinstance(sections, (list, tuple)) or not sections:
        return None
    fine = all(
        isinstance(section, (list, tuple))
        and all(isinstance(item, (list, tuple)) and item and not isinstance(item[0], (list, tuple)) for item in section)
        for section in sections
    )
    return [list(section) for section in sections] if fine else None


def _by_section(places: Sequence[Place], sections: int) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(place.concept for place in places if place.section == n) for n in range(sections))


def check_free(clip: comfy.sd.CLIP, trigger: str) -> None:
    """Check, before any work, that a trigger does not stand for a concept in this CLIP yet.

    Raises:
        TriggerTakenError: it does.
    """
    if trigger in getattr(clip, "concepts", {}):
        raise TriggerTakenError(
            f"The trigger {trigger!r} already stands for another concept in this CLIP: give this one another, or wire in the CLIP"
            " from before."
        )


def with_concept(
    clip: comfy.sd.CLIP, trigger: str, fingerprint: str, embedding: Tensor, memory: PromptMemory
) -> ConceptCLIP:
    """A CLIP that also knows one more concept.

    Args:
        clip: stock or with concepts; not changed.
        trigger: see :func:`~e4t_core.trigger.check_trigger`.
        fingerprint: content hash of the concept.
        embedding: static, ``(D,)`` or ``(V, D)`` for V tokens.
        memory: where its encoded prompts are remembered.

    Raises:
        TriggerError: the trigger cannot stand for a concept.
        TriggerTakenError: it already stands for another concept in this CLIP.
    """
    check_trigger(trigger)
    new = ConceptCLIP.of(clip, memory)
    other = new.concepts.get(trigger)
    if other is not None and other.fingerprint != fingerprint:
        check_free(clip, trigger)
    vectors = embedding.detach().float().cpu().clone().reshape(-1, embedding.shape[-1])
    new.concepts[trigger] = KnownConcept(trigger, fingerprint, vectors)
    tokens = {name: known.token for name, known in new.concepts.items()}
    new.tokenizer = tokenizer_with_concepts(new.stock_tokenizer, tokens)
    new.patcher.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, KEY)
    new.patcher.add_callback_with_key(
        CallbacksMP.ON_CLEANUP, KEY, partial(tell_if_drawn_elsewhere, memory, tuple(new.concepts))
    )
    return new
