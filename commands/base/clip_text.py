"""transformers' CLIP text model as the core's text encoder: a word embedding in the word's place, with gradients to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from e4t_core.unet import WordError

START, END = "<|startoftext|>", "<|endoftext|>"
PAD = {"sd1": END, "sd2": "!"}
"""With what the family's prompts are padded: SD 1.x with the end token, SD 2.x with token 0."""


def bundled_tokenizer(family: str) -> CLIPTokenizer:
    """CLIP's tokenizer from the vocabulary that open_clip carries: a single-file base brings none.

    Args:
        family: "sd1" or "sd2", which pad differently.
    """
    source = SimpleTokenizer()
    special = dict(zip(source.all_special_ids, (START, END), strict=True))
    vocabulary = {special.get(number, token): number for token, number in source.encoder.items()}
    merges = sorted(source.bpe_ranks, key=lambda pair: source.bpe_ranks[pair])
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=PAD[family])


def only_token(tokenizer: CLIPTokenizer, word: str) -> int:
    """The number of the one token that a domain word is.

    Raises:
        WordError: it is not exactly one; the message lists the pieces.
    """
    pieces = list(tokenizer(word, add_special_tokens=False)["input_ids"])
    if len(pieces) != 1:
        named = ", ".join(repr(piece) for piece in tokenizer.convert_ids_to_tokens(pieces)) or "nothing"
        raise WordError(
            f"The domain word {word!r} must be one token of this base model's text encoder, but it is"
            f" {len(pieces)} ({named}): choose a coarser word."
        )
    return int(pieces[0])


def check_length(tokenizer: CLIPTokenizer, prompt: str, length: int) -> None:
    """That a prompt with "{}" for the word fits into ``length`` tokens, the start and end token among them.

    Raises:
        WordError: it is too long.
    """
    pieces = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in prompt.split("{}", 1)]
    count = sum(len(part) for part in pieces) + len(pieces) - 1 + 2
    if count > length:
        raise WordError(f"The prompt {prompt!r} is {count - length} tokens too long: shorten it.")


class ClipTextEncoder:
    """The core's ``TextEncoder`` over a frozen :class:`CLIPTextModel`.

    Its context is the model's last hidden state behind the final norm; for SD 2.x, whose prompts skip the last
    layer, the model must have been built without that layer, as diffusers' folders and the single-file reader do.

    Args:
        network: frozen here; it computes in its parameters' type and where they are.
        tokenizer: its padding token pads the prompts.
    """

    def __init__(self, network: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        self.network = network.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._length = int(network.config.max_position_embeddings)

    @property
    def width(self) -> int:
        """Width D of word embeddings and of the context (SD 1.x: 768)."""
        return int(self._rows.embedding_dim)

    def word(self, word: str) -> Tensor:
        """The embedding row ``(D,)`` of a word, float32.

        Raises:
            WordError: it is not exactly one token; the message lists the pieces.
        """
        return self._rows.weight[only_token(self._tokenizer, word)].detach().float().clone()

    def encode(self, templates: Sequence[str], words: Tensor) -> Tensor:
        """Contexts ``(B, L, D)`` float32 of B templates, differentiable in ``words`` ``(B, D)`` or ``(B, V, D)``.

        Raises:
            ValueError: a template does not hold "{}" once, or is too long.
        """
        lent = words[:, None] if words.ndim == 2 else words
        vectors, rows, slots = lent.shape[1], [], []
        for template in templates:
            before, *after = template.split("{}")
            if len(after) != 1:
                raise ValueError(f"The prompt template {template!r} must hold '{{}}' once, where the word stands.")
            head = self._pieces(before)
            # The slot's own tokens are looked up and then overwritten: any will do.
            rows.append(self._padded(template, [*head, *[0] * vectors, *self._pieces(after[0])]))
            slots.append([1 + len(head) + number for number in range(vectors)])
        device = self._rows.weight.device
        places = torch.tensor(slots, device=device)[..., None]

        def with_words(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            return output.scatter(1, places.expand(-1, -1, output.shape[-1]), lent.to(output))

        # The model takes token ids only; the rows it looks up are exchanged on their way.
        handle = self._rows.register_forward_hook(with_words)
        try:
            return self._contexts(rows)
        finally:
            handle.remove()

    def empty(self) -> Tensor:
        """Context ``(1, L, D)`` float32 of the empty prompt."""
        return self._contexts([self._padded("", [])])

    @property
    def _rows(self) -> nn.Embedding:
        rows = self.network.get_input_embeddings()
        assert isinstance(rows, nn.Embedding)
        return rows

    def _pieces(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _padded(self, template: str, pieces: list[int]) -> list[int]:
        row = [self._tokenizer.bos_token_id, *pieces, self._tokenizer.eos_token_id]
        room = self._length - len(row)
        if room < 0:
            raise ValueError(f"The prompt template {template!r} is {-room} tokens too long: shorten it.")
        return row + [self._tokenizer.pad_token_id] * room

    def _contexts(self, rows: list[list[int]]) -> Tensor:
        tokens = torch.tensor(rows, device=self._rows.weight.device)
        return self.network(input_ids=tokens).last_hidden_state.float()
