"""A base model of a few thousand numbers that keeps the core's two protocols, and a domain and photos for it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e4t_core.layer_contexts import Context, ContextHooks, cross_attentions
from e4t_core.methods.e4t.concept_encoder import ConceptEncoder
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.domain_info import BackboneInfo, DomainInfo
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.methods.e4t.weight_offsets import WeightOffsets
from e4t_core.noise_schedule import NoiseSchedule, Prediction
from e4t_core.photos import Photos
from e4t_core.templates import NEUTRAL
from e4t_core.unet import WordError

CONTEXT = 6
WIDTH = 12
LAYERS = 2
CLIP_WIDTH = 5
LONGEST = 9  # rows of a context, for words of up to 4 tokens
ONE_TOKEN = ("face", "dog", "sks", "ohwx")


class Attention(nn.Module):
    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.to_q(x), self.to_k(context), self.to_v(context))


class TransformerBlock(nn.Module):
    def __init__(self, context: int) -> None:
        super().__init__()
        self.attn1 = Attention(WIDTH, WIDTH)
        self.attn2 = Attention(WIDTH, context)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(x, x)
        return x + self.attn2(x, context)


class Transformer(nn.Module):
    def __init__(self, context: int) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([TransformerBlock(context)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        flat = self.transformer_blocks[0](x.flatten(2).transpose(1, 2), context)
        return flat.transpose(1, 2).reshape(x.shape)


class DownBlock(nn.Module):
    def __init__(self, context: int, attentions: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, WIDTH, 3, stride=2, padding=1)
        self.attentions = nn.ModuleList([Transformer(context) for _ in range(attentions)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        for attention in self.attentions:
            x = attention(x, context)
        return x


class Network(nn.Module):
    """Its parameter names are canonical already."""

    def __init__(self, context: int, attentions: int = 1) -> None:
        super().__init__()
        self.time_embedding = nn.Linear(2, 8)
        self.conv_in = nn.Conv2d(4, 8, 3, padding=1)
        self.down_blocks = nn.ModuleList([DownBlock(context, attentions)])
        self.mid_block = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.conv_out = nn.Conv2d(WIDTH, 16, 1)

    def encode(self, z: Tensor, t: Tensor, context: Tensor) -> list[Tensor]:
        angle = t.float()[:, None] / 1000 * torch.tensor([1.0, 5.0], dtype=z.dtype)
        time = self.time_embedding(torch.cos(angle))[:, :, None, None]
        outputs = [self.conv_in(z) + time]
        outputs.append(self.down_blocks[0](outputs[-1], context))
        outputs.append(F.silu(self.mid_block(outputs[-1])))
        return outputs

    def forward(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv_out(self.encode(z, t, context)[-1]), 2)


class TinyUNet:
    """Implements ``e4t_core.unet.UNet``; ``depth`` counts the contexts that are open, ``calls`` lists the passes."""

    def __init__(
        self, seed: int = 0, prediction: Prediction = "epsilon", context: int = CONTEXT, attentions: int = 1
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = Network(context, attentions).requires_grad_(False)
        self.context = context
        self.prediction: Prediction = prediction
        self.schedule = NoiseSchedule.scaled_linear()
        self.feature_width = 8 + WIDTH + WIDTH
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.depth = 0
        self.calls: list[str] = []
        self.contexts: list[Tensor] = []
        self.backward_depths: list[int] = []
        self.hooks = ContextHooks(self.network, {name: name for name in cross_attentions(self.parameters())})

    def parameters(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.network.named_parameters()}

    def attention_projections(self) -> dict[str, tuple[int, int]]:
        return {
            name: (weight.shape[0], weight.shape[1])
            for name, weight in self.network.named_parameters()
            if ".attn" in name
        }

    @contextlib.contextmanager
    def using(self, weights: Mapping[str, Tensor], checkpointing: bool = False) -> Iterator[None]:
        self.depth += 1
        try:
            # Autograd refuses to keep what was made in inference mode.
            own = {name: p.clone() for name, p in self.network.named_parameters() if p.is_inference()}
            lent = torch.nn.utils.stateless._reparametrize_module(self.network, {**own, **weights})
            with lent, self.hooks.placed():
                yield
        finally:
            self.depth -= 1

    def denoise(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        assert self.depth > 0, "a pass outside using()"
        self.calls.append("denoise")
        prediction = self.network(z, t, self.hooks.plain(context))
        if prediction.requires_grad:
            prediction.register_hook(lambda gradient: self.backward_depths.append(self.depth))
        return prediction

    def features(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        assert self.depth > 0, "a pass outside using()"
        self.calls.append("features")
        self.contexts.append(context.detach().clone())
        return torch.cat([output.mean(dim=(2, 3)) for output in self.network.encode(z, t, context)], dim=1)


class TinyText:
    """Implements ``e4t_core.unet.TextEncoder``: context rows from template, word and both."""

    def __init__(self, width: int = CONTEXT) -> None:
        self.width = width
        self._mix = torch.randn(width, width, generator=torch.Generator().manual_seed(5)) / width**0.5
        self.templates: list[str] = []

    def word(self, word: str) -> Tensor:
        if word not in ONE_TOKEN:
            raise WordError(f"The word {word!r} is not one token but {list(word)}: choose another domain.")
        return self._row(word)

    def encode(self, templates: Sequence[str], words: Tensor) -> Tensor:
        self.templates.extend(templates)
        rows = torch.stack([self._row(template) for template in templates])[:, None]
        # E4T gives words (B, D), Textual Inversion (B, V, D).
        words = words if words.ndim == 3 else words[:, None]
        # The clone is what a host whose weights are inference tensors has to do as well.
        # As long whatever the word is, as a real one's contexts are.
        room = torch.zeros(len(rows), LONGEST - 1 - 2 * words.shape[1], self.width)
        return torch.tanh(torch.cat([rows, words, rows + words, room], dim=1) @ self._mix.clone())

    def empty(self) -> Tensor:
        return torch.tanh(self._row("")[None, None].repeat(1, LONGEST, 1) @ self._mix)

    def _row(self, text: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
        return 0.5 * torch.randn(self.width, generator=torch.Generator().manual_seed(seed))


def tiny_info(unet: TinyUNet, **changes: object) -> DomainInfo:
    values: dict[str, object] = {
        "name": "tiny",
        "word": "face",
        "base_family": "sd1",
        "prediction": unet.prediction,
        "context_width": unet.context,
        "feature_width": unet.feature_width,
        "projections": unet.attention_projections(),
        "backbone": BackboneInfo("open_clip", "ViT-tiny", tuple(range(1, LAYERS + 1)), CLIP_WIDTH, 32),
        "scale": 0.5,
        "templates": NEUTRAL,
        "preset": TuningSettings(),
        "image_size": 64,
        "training": {"data": "drawn", "steps": 3},
        "license": "Apache-2.0",
    }
    return DomainInfo(**(values | changes))  # type: ignore[arg-type]


def tiny_domain(unet: TinyUNet, seed: int = 3, **changes: object) -> Domain:
    """A domain whose offsets are NOT zero, as if pre-trained."""
    info = tiny_info(unet, **changes)
    generator = torch.Generator().manual_seed(seed)
    encoder = ConceptEncoder(LAYERS, CLIP_WIDTH, info.feature_width, info.context_width, generator)
    offsets = WeightOffsets(info.projections, info.v_size, generator)
    for parameter in offsets.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    encoder.eval().requires_grad_(False)
    offsets.eval().requires_grad_(False)
    return Domain(encoder, offsets, info)


def tiny_photos(count: int = 1, seed: int = 11, masks: bool = False) -> Photos:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(count, 4, 8, 8, generator=generator)
    clip_features = torch.randn(count, LAYERS, CLIP_WIDTH, generator=generator)
    drawn = (torch.rand(count, 1, 8, 8, generator=generator) > 0.5).float()
    return Photos(latents, clip_features, drawn if masks else None)


def stable_diffusion_projections() -> dict[str, tuple[int, int]]:
    """Shapes of SD 1.5's 96 projections: 16 transformers of 320, 640 and 1280 channels, context 768."""
    places = [(f"down_blocks.{b}.attentions.{a}", 320 * 2**b) for b in range(3) for a in range(2)]
    places += [(f"up_blocks.{b}.attentions.{a}", 1280 // 2 ** (b - 1)) for b in range(1, 4) for a in range(3)]
    places.append(("mid_block.attentions.0", 1280))
    shapes = {}
    for place, width in places:
        for attention, context in (("attn1", width), ("attn2", 768)):
            for matrix, inputs in (("to_q", width), ("to_k", context), ("to_v", context)):
                shapes[f"{place}.transformer_blocks.0.{attention}.{matrix}.weight"] = (width, inputs)
    return shapes
