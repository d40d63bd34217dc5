"""Content hashes of what is wired into a node: equal content is the same thing, whatever object it lives in."""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....e4t_core.fingerprint import fingerprint
from ..networks.effective_weights import is_ours

# The text encoder's projection of its pooled output, which SD 1.x and 2.x do not use. SD 1.x checkpoints lack it, and
# ComfyUI leaves it uninitialized then: other numbers at every loading.
UNUSED = "text_projection.weight"

# Base models whose fingerprint is remembered: 64 characters each.
BASES = 64


class WeightHashes:
    """Content hashes of models' weights, each computed once: a few seconds for a full-size model."""

    def __init__(self) -> None:
        self._raw: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()
        self._bases: OrderedDict[str, str] = OrderedDict()

    def clear(self) -> None:
        """Forget all."""
        self._raw.clear()
        self._bases.clear()

    def weights_key(self, patcher: ModelPatcher) -> str:
        """Content hash of a model's effective weights: raw weights and patches, E4T concepts left out."""
        patches = patcher.get_key_patches()
        if patcher.model not in self._raw:
            digest = hashlib.sha256()
            for key in sorted(patches):
                if key.endswith(UNUSED):
                    continue
                _feed(digest, key)
                # The raw weight, also while a patched copy is loaded in its place.
                _feed(digest, patches[key][0][0])
            self._raw[patcher.model] = digest.hexdigest()
        digest = hashlib.sha256(self._raw[patcher.model].encode())
        for key in sorted(patches):
            foreign = [patch for patch in patches[key][1:] if not is_ours(patch)]
            if foreign:
                _feed(digest, [key, *foreign])
        return digest.hexdigest()

    def base_fingerprint(self, key: str, parameters: Mapping[str, Tensor]) -> str:
        """The core's content hash of base weights by canonical name, computed once per :meth:`weights_key`."""
        if key not in self._bases:
            self._bases[key] = fingerprint(parameters)
            while len(self._bases) > BASES:
                self._bases.popitem(last=False)
        return self._bases[key]


def content_key(*parts: Any) -> str:
    """Content hash of tensors, numbers, texts, and lists and dictionaries of them."""
    digest = hashlib.sha256()
    _feed(digest, list(parts))
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        data = value.detach().to("cpu").contiguous()
        digest.update(f"tensor {data.dtype} {tuple(data.shape)} ".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)} ".encode())
        for part in value:
            _feed(digest, part)
    elif isinstance(value, dict):
        _feed(digest, [[key, value[key]] for key in sorted(value, key=str)])
    elif hasattr(value, "weights"):
        # A LoRA adapter of ComfyUI: its class says how its tensors are used.
        digest.update(type(value).__name__.encode())
        _feed(digest, value.weights)
    elif callable(value):
        digest.update(f"function {getattr(value, '__qualname__', type(value).__name__)} ".encode())
    else:
        digest.update(f"{type(value).__name__} {value!r} ".encode())
