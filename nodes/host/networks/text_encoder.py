"""ComfyUI's CLIP as the core's text encoder: a word embedding in the word's place, with gradients to it."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import torch
from torch import Tensor
from torch.nn.utils.stateless import _reparametrize_module

from ....e4t_core.unet import WordError
from .base_model import SUPPORTED
from .effective_weights import EffectiveWeights

# Where ComfyUI keeps what is multiplied; embeddings and norms stay as they are.
LAYERS = ".encoder.layers."


class UnsupportedCLIPError(ValueError):
    """A CLIP that E4T cannot use; the message says what works and what was found."""


class ComfyTextEncoder:
    """The core's ``TextEncoder`` over a CLIP with one text encoder (SD 1.x: CLIP-L; SD 2.x: CLIP-H).

    Clip skip and LoRAs of the CLIP count: they are what the sampler's prompts are encoded with. Its weights are lent
    copies on the load device, float32; the shared module is left as it was.

    Args:
        clip: see above.
        rounded: hold the matrices of its layers in bfloat16, for callers that compute under autocast to it, which would
            round them anyway.

    Raises:
        UnsupportedCLIPError: it is a CLIP of another family.
    """

    def __init__(self, clip: comfy.sd.CLIP, rounded: bool = False) -> None:
        outer = clip.cond_stage_model
        if not isinstance(outer, comfy.sd1_clip.SD1ClipModel) or not hasattr(clip.tokenizer, "clip"):
            raise UnsupportedCLIPError(
                f"{SUPPORTED}, but this CLIP is a {type(outer).__name__}: wire in the CLIP of the same checkpoint."
            )
        self._clip, self._outer = clip, outer
        self._network: comfy.sd1_clip.SDClipModel = getattr(outer, outer.clip)
        self._tokenizer = getattr(clip.tokenizer, clip.tokenizer.clip)
        self._weights = {
            name: weight.bfloat16() if rounded and weight.ndim == 2 and LAYERS in name else weight
            for name, weight in EffectiveWeights(clip.patcher, f"{outer.clip}.").items()
        }
        self._device = clip.patcher.load_device

    @property
    def width(self) -> int:
        """Width D of word embeddings and of the context."""
        return int(self._network.transformer.get_input_embeddings().weight.shape[1])

    def word(self, word: str) -> Tensor:
        """The embedding row ``(D,)`` of a word.

        Raises:
            WordError: it is not exactly one token; the message lists the pieces.
        """
        pieces = self._pieces(word)
        if len(pieces) != 1:
            named = ", ".join(repr(self._tokenizer.inv_vocab.get(piece, piece)) for piece in pieces) or "nothing"
            raise WordError(
                f"The word {word!r} must be one token of this CLIP, but it is {len(pieces)} ({named}): choose another word, or another"
                " base model or domain file, whichever it came from."
            )
        rows = self._weights["transformer.text_model.embeddings.token_embedding.weight"]
        return rows[pieces[0]].detach().clone()

    def encode(self, templates: Sequence[str], words: Tensor) -> Tensor:
        """Contexts ``(B, L, D)``, differentiable in ``words`` ``(B, D)`` or ``(B, V, D)``.

        Raises:
            ValueError: a template does not hold "{}" once, or is too long.
        """
        return self._encode([self._tokens(template, word) for template, word in zip(templates, words, strict=True)])

    def empty(self) -> Tensor:
        """Context ``(1, L, D)`` of the empty prompt."""
        return self._encode([self._tokens("", None)])

    def _pieces(self, text: str) -> list[int]:
        ids = list(self._tokenizer.tokenizer(text)["input_ids"])
        return ids[self._tokenizer.tokens_start : -1]

    def _tokens(self, template: str, word: Tensor | None) -> list[int | Tensor]:
        """One row of tokens, padded as the stock tokenizer pads; ``word`` stands where "{}" does."""
        before, *after = template.split("{}")
        if (len(after) != 1) == (word is not None):
            raise ValueError(f"The prompt template {template!r} must hold '{{}}' once, where the word stands.")
        row: list[int | Tensor] = [self._tokenizer.start_token, *self._pieces(before)]
        if word is not None:
            row += [*word.reshape(-1, word.shape[-1]), *self._pieces(after[0])]
        row.append(self._tokenizer.end_token)
        room = self._tokenizer.max_length - len(row)
        if room < 0:
            raise ValueError(f"The prompt template {template!r} is {-room} tokens too long: shorten it.")
        return [*row, *[self._tokenizer.pad_token] * room]

    def _encode(self, rows: list[list[int | Tensor]]) -> Tensor:
        self._outer.reset_clip_options()
        if self._clip.layer_idx is not None:
            self._outer.set_clip_options({"layer": self._clip.layer_idx})
        self._outer.set_clip_options({"execution_device": self._device})
        # ComfyUI's layers add in place to tensors that autograd has saved: it gets copies of those, not of the weights.
        weights = {weight.data_ptr() for weight in self._weights.values()}
        copies = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: tensor if tensor.data_ptr() in weights else copy_with_strides(tensor), lambda tensor: tensor
        )
        with _reparametrize_module(self._network, self._weights), copies:
            return self._network.encode(rows)[0]


def copy_with_strides(tensor: Tensor) -> Tensor:
    """A copy that lies in memory as the tensor does.

    A plain clone packs its rows. But PyTorch pads a mask's rows to the alignment that its attention kernels on graphics cards
    ask for, and the backward pass relies on that.
    """
    memory = tensor.untyped_storage().clone()
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
        memory, tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def unload(*patchers: object) -> None:
    """Take models off their device: tuning holds its own copies of what it needs, in float32."""
    for patcher in patchers:
        comfy.model_management.unload_model_and_clones(patcher, unload_additional_models=False)
