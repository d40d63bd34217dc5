"""The mini world's own networks as the method's base model: what a domain is pre-trained with, outside ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor
from torch.nn.utils.stateless import _reparametrize_module

from e4t_core.canonical_names import canonical_names
from e4t_core.layer_contexts import Context, ContextHooks, cross_attentions
from e4t_core.noise_schedule import NoiseSchedule, Prediction
from e4t_core.unet import WordError

from .sampling import alphas_cumprod
from .text_encoder import TextEncoder, pad_tokens, tokenize
from .unet import UNetModel

PLACEHOLDER = "face"  # any single known token marks the slot


class TrainingUNet:
    """``e4t_core.unet.UNet`` over a :class:`UNetModel` of any width."""

    prediction: Prediction = "epsilon"

    def __init__(self, model: UNetModel) -> None:
        self.network = model.eval().requires_grad_(False)
        self.schedule = NoiseSchedule(alphas_cumprod())
        self._native = {canonical: native for native, canonical in canonical_names(model.state_dict()).items()}
        layers = {name: self._native[f"{name}.to_k.weight"] for name in cross_attentions(self._native)}
        self._hooks = ContextHooks(
            model, {name: native.removesuffix(".to_k.weight") for name, native in layers.items()}
        )

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def feature_width(self) -> int:
        return self.network.shape.width * (len(self.network.input_blocks) + 1)

    def parameters(self) -> dict[str, Tensor]:
        own = dict(self.network.named_parameters())
        return {canonical: own[native].detach() for canonical, native in self._native.items()}

    def attention_projections(self) -> dict[str, tuple[int, int]]:
        return {
            name: (weight.shape[0], weight.shape[1])
            for name, weight in self.parameters().items()
            if name.rsplit(".", 2)[-2] in ("to_q", "to_k", "to_v")
        }

    def using(self, weights: Mapping[str, Tensor], checkpointing: bool = False) -> AbstractContextManager[object]:
        return self._lent({self._native[name]: weight for name, weight in weights.items()})

    @contextmanager
    def _lent(self, weights: dict[str, Tensor]) -> Iterator[None]:
        with _reparametrize_module(self.network, weights), self._hooks.placed():
            yield

    def denoise(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.network(z.contiguous(memory_format=torch.channels_last), t, self._hooks.plain(context))

    def features(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        outputs, _ = self.network.encode(z.contiguous(memory_format=torch.channels_last), t, self._hooks.plain(context))
        return torch.cat([output.mean(dim=(2, 3)) for output in outputs], dim=1)


class TrainingText:
    """``e4t_core.unet.TextEncoder`` over the mini world's :class:`TextEncoder`."""

    width = 768

    def __init__(self, model: TextEncoder) -> None:
        self.network = model.eval().requires_grad_(False)

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def word(self, word: str) -> Tensor:
        tokens = tokenize(word)
        if len(tokens) != 1:
            raise WordError(f"{word!r} is {len(tokens)} tokens in this text encoder, not one: choose another word.")
        return self.network.embed(torch.tensor([tokens], device=self._device))[0, 0].detach()

    def encode(self, templates: Sequence[str], words: Tensor) -> Tensor:
        lent = words[:, None] if words.ndim == 2 else words
        vectors = lent.shape[1]
        starts = torch.tensor([1 + len(tokenize(template[: template.index("{}")])) for template in templates])
        tokens = pad_tokens([template.format(" ".join([PLACEHOLDER] * vectors)) for template in templates])
        rows = self.network.embed(tokens.to(words.device))
        places = (starts[:, None] + torch.arange(vectors)).to(rows.device)[..., None].expand(-1, -1, rows.shape[-1])
        return self.network.transform(rows.scatter(1, places, lent.to(rows)))

    def empty(self) -> Tensor:
        with torch.no_grad():
            return self.network(pad_tokens([""]).to(self._device))
