"""A CLIP that knows concepts: their words in prompts, and how to encode a prompt again with other word embeddings.

It is ComfyUI's own CLIP in every other respect: LoRA loaders, clip skip and every text-encode node keep working, and
what it gives them is ordinary conditioning with the static embedding in the word's place.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sd
import torch
from torch import Tensor

from ..networks.idle_layers import idle_layers, left_out
from .prompt_memory import EncodedPrompt, PromptMemory
from .prompt_words import check_alias, rewrite_aliases, tokenizer_with_words

# Key under which a conditioning names the remembered prompts it was made from; it is a hint, content decides.
MARK = "e4t_prompts"
# Of a range of a hook schedule: each hook and the keyframe that holds there.
Keyframes = Sequence[tuple[Any, Any]]


class AliasTakenError(ValueError):
    """A word that already stands for another concept in this CLIP."""


@dataclass(frozen=True, eq=False)
class Word:
    """A concept's word as a CLIP knows it.

    Attributes:
        alias: how it is written in prompts.
        fingerprint: content hash of the concept.
        token: embedding ``(D,)``, or ``(V, D)`` for a word of V tokens; this very tensor stands in token lists.
    """

    alias: str
    fingerprint: str
    token: Tensor

    def holds(self, token: Tensor) -> bool:
        """Whether a token ``(D,)`` is one of the word's."""
        rows = self.token.reshape(-1, self.token.shape[-1])
        return token.shape == rows.shape[1:] and any(torch.equal(token, row) for row in rows)


class ConceptCLIP(comfy.sd.CLIP):
    """ComfyUI's CLIP plus concept words. Made by :func:`with_concept`; never changes the CLIP it was made from."""

    words: dict[str, Word]
    memory: PromptMemory
    stock_tokenizer: object
    _idle_of: tuple[object, tuple[int, ...]] | None = None

    @classmethod
    def of(cls, clip: comfy.sd.CLIP, memory: PromptMemory) -> ConceptCLIP:
        """A clone of a CLIP, with its words if it has any."""
        new = cls(no_init=True)
        plain = comfy.sd.CLIP.clone(clip)
        for name, value in vars(plain).items():
            setattr(new, name, value)
        new.memory = memory
        new.words = dict(getattr(clip, "words", {}))
        new.stock_tokenizer = getattr(clip, "stock_tokenizer", clip.tokenizer)
        return new

    def clone(self, disable_dynamic: bool = False) -> ConceptCLIP:
        """As the stock one; the words come along."""
        new = ConceptCLIP(no_init=True)
        for name, value in vars(super().clone(disable_dynamic=disable_dynamic)).items():
            setattr(new, name, value)
        new.words, new.memory, new.stock_tokenizer = self.words, self.memory, self.stock_tokenizer
        return new

    def tokenize(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> Any:
        """As the stock one; aliases are rewritten to ``embedding:e4t/<alias>`` first."""
        return super().tokenize(rewrite_aliases(text, self.words), return_word_ids, **kwargs)

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

    def _remember(self, tokens: Any, static: Tensor, keyframes: Keyframes = ()) -> dict[str, Any]:
        """Remember a prompt; what to add to its conditioning."""
        sections = tokens.get(self.tokenizer.clip_name) if isinstance(tokens, dict) else None
        if sections is None or static.ndim != 3 or static.shape[0] != 1 or static.shape[1] % max(len(sections), 1):
            return {}
        found = {word.fingerprint: word.alias for row in sections for item in row if (word := self._word_of(item[0]))}
        # The prompt's own view of this CLIP, clip skip as it is now; the patcher is shared, to be loaded once.
        clip = copy.copy(self) if found else None
        encode = (lambda words, company: clip.encode_again(sections, words, company, keyframes)) if clip else None
        prompt = EncodedPrompt(static.detach().cpu(), len(sections), found, encode, self.cond_stage_model)
        self.memory.remember(prompt)
        # The text encoder is needed at every evaluation: it asks to be held in memory together with the UNet.
        return {MARK: (prompt,), "additional_models": [clip.patcher]} if clip else {}

    def _word_of(self, token: Any) -> Word | None:
        if not torch.is_tensor(token):
            return None
        known = list(self.words.values())
        same = next((word for word in known if word.token is token), None)
        # Other packs copy tokens; then the content decides.
        return same or next((word for word in known if word.holds(token.cpu())), None)

    def encode_again(
        self,
        sections: list[list[Any]],
        words: dict[str, Tensor],
        company: Sequence[object],
        keyframes: Keyframes = (),
    ) -> Tensor:
        """Encode a prompt with other word embeddings: ``(B, T, D)`` in ONE call of the text encoder.

        Args:
            sections: its token lists, with weights.
            words: fingerprint -> embeddings ``(B, D)``; rows that are equal are encoded once, ``(1, T, D)``.
            company: patchers in use (the UNet's), to be loaded together with the text encoder if that has to be loaded.
            keyframes: of a scheduled CLIP's hooks, as they were when the prompt was first encoded.
        """
        rows = max(value.shape[0] for value in words.values())
        if all(bool((value == value[:1]).all()) for value in words.values()):
            rows = 1
        batch = []
        for index in range(rows):
            for row in sections:
                batch.append([self._with_embedding(item, words, index) for item in row])
        encoder = self.cond_stage_model
        encoder.reset_clip_options()
        if self.layer_idx is not None:
            encoder.set_clip_options({"layer": self.layer_idx})
        if not self._is_loaded():
            comfy.model_management.load_models_gpu([*company, self.patcher])
        device = self.patcher.load_device
        encoder.set_clip_options({"execution_device": device})
        with (
            comfy.model_management.cuda_device_context(device),
            left_out(getattr(encoder, encoder.clip), self._idle()),
            self._hooks_at(keyframes),
        ):
            encoded = encoder.encode_token_weights({self.tokenizer.clip_name: batch})[0]
        return encoded.reshape(rows, -1, encoded.shape[-1])

    @contextmanager
    def _hooks_at(self, keyframes: Keyframes) -> Iterator[None]:
        """The text encoder under this CLIP's hooks at these keyframes, as stock scheduled encoding sets them."""
        hooks = self.patcher.forced_hooks
        if not keyframes or hooks is None:
            yield
            return
        for hook, keyframe in keyframes:
            hook.hook_keyframe._current_keyframe = keyframe
        try:
            self.patcher.patch_hooks(hooks)
            yield
        finally:
            hooks.reset()

    def _with_embedding(self, item: Any, words: dict[str, Tensor], index: int) -> tuple[Any, ...]:
        word = self._word_of(item[0])
        if word is None or word.fingerprint not in words:
            return (item[0], item[1])
        values = words[word.fingerprint]
        return (values[min(index, values.shape[0] - 1)], item[1])

    def _idle(self) -> tuple[int, ...]:
        """Layers that add nothing, LoRAs counted; looked for once for each set of patches."""
        key = self.patcher.patches_uuid
        if self._idle_of is None or self._idle_of[0] != key:
            held, encoder = self.patcher, self.cond_stage_model
            touched = {*held.patches, *held.object_patches, *held.weight_wrapper_patches}
            own = {} if held.hook_patches else {k: w for k, w in encoder.named_parameters() if k not in touched}
            self._idle_of = (key, idle_layers(own, f"{encoder.clip}."))
        return self._idle_of[1]

    def _is_loaded(self) -> bool:
        """The text encoder is on its device with these patches: loading anything could evict the UNet."""
        loaded = any(
            kept.model is not None and kept.model.model is self.patcher.model
            for kept in comfy.model_management.current_loaded_models
        )
        return loaded and self.patcher.model.current_weight_patches_uuid == self.patcher.patches_uuid


def check_free(clip: comfy.sd.CLIP, alias: str) -> None:
    """Check, before any work, that a word does not stand for a concept in this CLIP yet.

    Raises:
        AliasTakenError: it does.
    """
    if alias in getattr(clip, "words", {}):
        raise AliasTakenError(
            f"The word {alias!r} already stands for another concept in this CLIP: give this one another word,"
            " or wire in the CLIP from before."
        )


def with_concept(
    clip: comfy.sd.CLIP, alias: str, fingerprint: str, static_embedding: Tensor, memory: PromptMemory
) -> ConceptCLIP:
    """A CLIP that also knows one more concept.

    Args:
        clip: stock or with concepts; not changed.
        alias: the concept's word, see :func:`~.prompt_words.check_alias`.
        fingerprint: content hash of the concept.
        static_embedding: ``(V, D)``, the word as V tokens.
        memory: where its encoded prompts are remembered.

    Raises:
        AliasError: the alias cannot stand for a concept.
        AliasTakenError: it already stands for another concept in this CLIP.
    """
    check_alias(alias)
    new = ConceptCLIP.of(clip, memory)
    other = new.words.get(alias)
    if other is not None and other.fingerprint != fingerprint:
        check_free(clip, alias)
    token = static_embedding.detach().float().cpu().clone()
    new.words[alias] = Word(alias, fingerprint, token[0] if len(token) == 1 else token)
    new.tokenizer = tokenizer_with_words(new.stock_tokenizer, {name: word.token for name, word in new.words.items()})
    return new
