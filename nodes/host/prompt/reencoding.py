"""Encode a prompt again with other word embeddings, exactly as it was first encoded.

Everything but the word embeddings is handed over as it was: the tokens with all their fields, and the CLIP with its
weights, object patches, hooks and clip skip. Where another pack has put its own encode method into the text encoder, one
prompt is encoded at a time, because such methods may weigh over all that they are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

# What other packs put in place of a text encoder's own, on the instance, often only while their node runs.
METHODS = ("encode_token_weights", "encode", "forward", "process_tokens", "gen_empty_tokens")
STOCK = ("comfy.", "torch.")
# Of a prompt that is encoded again with nothing changed, in relative terms; another device's rounding stays below it.
UNFAITHFUL = 1e-3

# Of a range of a hook schedule: each hook and the keyframe that holds there.
Keyframes = Sequence[tuple[Any, Any]]


class UnfaithfulError(RuntimeError):
    """A text encoder that gives something else for the same prompt, so that it cannot be encoded again."""


@dataclass(frozen=True)
class Place:
    """Where a concept's token stands: section and position, which of its V vectors it is, and a factor on it."""

    section: int
    position: int
    concept: str
    vector: int = 0
    factor: float = 1.0


@dataclass(eq=False)
class Reencoding:
    """All that decides how a prompt was encoded.

    Attributes:
        clip: the CLIP as it was; its patcher is shared, to be loaded once.
        tokens: as they were given, section by section; no list in it is anybody else's.
        places: where the concepts stand.
        static: what came out ``(1, T, D)``, on the CPU.
        keyframes: of a scheduled CLIP's hooks, as they were.
        methods: what the text encoder's own methods were, by ("outer" or "inner", name).
        own: whether all of them were ComfyUI's.
    """

    clip: comfy.sd.CLIP
    tokens: dict[str, list[list[Any]]]
    places: tuple[Place, ...]
    static: Tensor
    keyframes: Keyframes = ()
    methods: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    own: bool = True
    _faithful: bool = False

    def encode(self, words: Mapping[str, Tensor], company: Sequence[object]) -> Tensor:
        """The prompt with other word embeddings: ``(B, T, D)``, with ComfyUI's own methods in ONE call.

        Args:
            words: fingerprint -> embeddings ``(B, D)`` or ``(B, V, D)``; rows that are all equal are encoded once (on the CPU).
            company: patchers in use (the UNet's), to be loaded together with the text encoder if that has to be loaded.

        Raises:
            UnfaithfulError: the text encoder no longer gives for the same prompt what it gave first.
        """
        rows = max(value.shape[0] for value in words.values())
        if all(_are_alike(value) for value in words.values()):
            rows = 1
        batches = [self._sections(words, index) for index in range(rows)]
        with as_first_encoded(self, company) as encoder:
            if self.own:
                return self._with_words(encoder, batches)
            if not self._faithful:
                self._check(self._run(encoder, self.tokens[encoder.clip_name]))
            return torch.cat([self._run(encoder, batch) for batch in batches])

    def _with_words(self, encoder: Any, batches: Sequence[list[list[Any]]]) -> Tensor:
        """``(B, T, D)``: only sections that hold a word are encoded, because ComfyUI's methods encode each by itself."""
        numbers = sorted({place.section for place in self.places})
        encoded = self._run(encoder, [batch[number] for batch in batches for number in numbers])
        if len(numbers) == len(batches[0]):
            return encoded.reshape(len(batches), -1, encoded.shape[-1])
        fresh = encoded.reshape(len(batches), len(numbers), -1, encoded.shape[-1]).unbind(dim=1)
        parts = [part.to(encoded).expand(len(batches), -1, -1) for part in self.static.chunk(len(batches[0]), dim=1)]
        for number, part in zip(numbers, fresh, strict=True):
            parts[number] = part
        return torch.cat(parts, dim=1)

    def _run(self, encoder: Any, sections: list[list[Any]]) -> Tensor:
        # The clip_name is the tokenizer's key for this text encoder.
        return encoder.encode_token_weights({**self.tokens, encoder.clip_name: sections})[0]

    def _check(self, again: Tensor) -> None:
        old, new = self.static.float(), again.detach().to("cpu").float()
        if old.shape != new.shape or float((new - old).norm()) > UNFAITHFUL * float(old.norm()):
            raise UnfaithfulError("The text encoder of another node gives something else when it is run again.")
        self._faithful = True

    def _sections(self, words: Mapping[str, Tensor], index: int) -> list[list[Any]]:
        sections = [list(section) for section in self.tokens[self.clip.cond_stage_model.clip_name]]
        for place in self.places:
            values = words.get(place.concept)
            if values is None:
                continue
            value = values[min(index, values.shape[0] - 1)]
            vector = value if value.ndim == 1 else value[place.vector]
            item = sections[place.section][place.position]
            sections[place.section][place.position] = _with_vector(item, vector, place.factor)
        return sections


def _are_alike(words: Tensor) -> bool:
    """Whether all rows of words ``(B, D)`` are equal; on another device the host would have to wait for them."""
    return words.shape[0] == 1 or (words.device.type == "cpu" and bool((words == words[:1]).all()))


def _with_vector(item: Any, vector: Tensor, factor: float) -> Any:
    token: Any = vector if factor == 1.0 else vector * factor
    if isinstance(item[0], dict):
        token = {**item[0], "data": token}
    changed = (token, *item[1:])
    return list(changed) if isinstance(item, list) else changed


def encoder_methods(encoder: Any) -> tuple[dict[tuple[str, str], Any], bool]:
    """A text encoder's methods as they are now, and whether all of them are ComfyUI's own."""
    methods = {}
    own = True
    for name, module in (("outer", encoder), ("inner", getattr(encoder, encoder.clip))):
        for method in METHODS:
            found = getattr(module, method, None)
            if found is None:
                continue
            methods[name, method] = found
            function = getattr(found, "__func__", found)
            # ComfyUI leaves a module's own bound method behind where it has taken a patch away again.
            mine = getattr(found, "__self__", None) is module
            own = own and mine and str(getattr(function, "__module__", "")).startswith(STOCK)
    return methods, own


@contextmanager
def as_first_encoded(prompt: Reencoding, company: Sequence[object]) -> Iterator[Any]:
    """The text encoder as it was when a prompt was first encoded; afterwards it is as it was before."""
    clip, patcher = prompt.clip, prompt.clip.patcher
    encoder = clip.cond_stage_model
    encoder.reset_clip_options()
    if clip.layer_idx is not None:
        encoder.set_clip_options({"layer": clip.layer_idx})
    with ExitStack() as stack:
        held = loaded_patcher(patcher)
        if held is None or not _same_weights(held, patcher):
            comfy.model_management.load_models_gpu([*company, patcher])
        elif held is not patcher:
            stack.enter_context(_object_patches(held, patcher))
        encoder.set_clip_options({"execution_device": patcher.load_device})
        stack.enter_context(comfy.model_management.cuda_device_context(patcher.load_device))
        stack.enter_context(_hooks_at(patcher, prompt.keyframes))
        if not prompt.own:
            stack.enter_context(_methods(encoder, prompt.methods))
        yield encoder


def loaded_patcher(patcher: ModelPatcher) -> ModelPatcher | None:
    """The patcher of the same model that is loaded now; loading another one could evict the UNet."""
    for kept in comfy.model_management.current_loaded_models:
        held = kept.model
        if held is not None and held.model is patcher.model:
            return held
    return None


def _same_weights(held: ModelPatcher, patcher: ModelPatcher) -> bool:
    """Whether a loaded patcher's model differs from another's in object patches at most."""
    if patcher.model.current_weight_patches_uuid != patcher.patches_uuid:
        return False
    return held is patcher or all(
        getattr(held, name) == getattr(patcher, name)
        for name in ("forced_hooks", "weight_wrapper_patches", "injections", "force_cast_weights")
    )


@contextmanager
def _object_patches(held: ModelPatcher, patcher: ModelPatcher) -> Iterator[None]:
    """Within it, one patcher's object patches are in force instead of those of the one that is loaded."""
    names = held.object_patches.keys() | patcher.object_patches.keys()
    changed = {}
    try:
        for name in sorted(names):
            original = held.object_patches_backup.get(name)
            wanted = patcher.object_patches.get(name, original)
            if wanted is not None and wanted is not held.object_patches.get(name):
                changed[name] = comfy.utils.set_attr(patcher.model, name, wanted)
        yield
    finally:
        for name, before in changed.items():
            comfy.utils.set_attr(patcher.model, name, before)


@contextmanager
def _methods(encoder: Any, methods: Mapping[tuple[str, str], Any]) -> Iterator[None]:
    """Within it, a text encoder's methods are these."""
    modules = {"outer": encoder, "inner": getattr(encoder, encoder.clip)}
    before: list[tuple[Any, str, bool, Any]] = []
    try:
        for (name, method), wanted in methods.items():
            module = modules[name]
            if getattr(module, method, None) != wanted:
                before.append((module, method, method in vars(module), vars(module).get(method)))
                setattr(module, method, wanted)
        yield
    finally:
        for module, method, was_there, value in reversed(before):
            if was_there:
                setattr(module, method, value)
            else:
                delattr(module, method)


@contextmanager
def _hooks_at(patcher: ModelPatcher, keyframes: Keyframes) -> Iterator[None]:
    """The text encoder under its patcher's hooks at these keyframes, as stock scheduled encoding sets them."""
    hooks = patcher.forced_hooks
    if not keyframes or hooks is None:
        yield
        return
    for hook, keyframe in keyframes:
        hook.hook_keyframe._current_keyframe = keyframe
    try:
        patcher.patch_hooks(hooks)
        yield
    finally:
        hooks.reset()
