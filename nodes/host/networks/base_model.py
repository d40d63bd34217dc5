"""ComfyUI's UNet as the core's UNet: effective weights, lent weights, noise prediction, features.

The model that an artist wires in is shared by the whole workflow, so nothing here writes to it: other weights are lent
to its module for the length of a ``with`` block and taken back, whatever happens.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import comfy.model_sampling
import torch
from comfy.ldm.modules.attention import SpatialTransformer, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils.checkpoint import checkpoint

from ....e4t_core.canonical_names import canonical_names
from ....e4t_core.layer_contexts import Context, ContextHooks, changed, cross_attentions
from ....e4t_core.noise_schedule import NoiseSchedule, Prediction
from .effective_weights import EffectiveWeights

PREFIX = "diffusion_model."
FAMILIES = {768: "sd1", 1024: "sd2"}
SUPPORTED = "E4T works with Stable Diffusion 1.x and 2.x base models (4 latent channels, float weights)"


class UnsupportedModelError(ValueError):
    """A MODEL that E4T cannot tune; the message says what works and what was found."""


def check_supported(model: ModelPatcher) -> None:
    """Check that a MODEL is a Stable Diffusion 1.x or 2.x UNet with float weights.

    Raises:
        UnsupportedModelError: it is an inpaint, SDXL, Flux, … or quantized model; one sentence says which.
    """
    base = model.model
    network = getattr(base, "diffusion_model", None)
    found = type(base).__name__
    if not isinstance(network, UNetModel):
        raise UnsupportedModelError(f"{SUPPORTED}, but this MODEL is a {found} model: load an SD 1.5 checkpoint.")
    config = base.model_config.unet_config
    if config.get("in_channels") != 4:
        raise UnsupportedModelError(
            f"{SUPPORTED}, but this MODEL reads {config.get('in_channels')} channels, as inpaint and edit models do:"
            " load the plain checkpoint of the same family."
        )
    if network.num_classes is not None or config.get("context_dim") not in FAMILIES:
        raise UnsupportedModelError(
            f"{SUPPORTED}, but this MODEL is a {found} model with context width {config.get('context_dim')}"
            " (SDXL and its relatives): load an SD 1.5 checkpoint."
        )
    for name, weight in network.named_parameters():
        # Sub-byte and 8-bit types and ComfyUI's quantized tensors cannot be trained and lose small differences.
        if type(weight.data).__name__ == "QuantizedTensor" or not weight.is_floating_point() or weight.itemsize < 2:
            kind = "a QuantizedTensor" if type(weight.data).__name__ == "QuantizedTensor" else weight.dtype
            raise UnsupportedModelError(
                f"{SUPPORTED}, but this MODEL is quantized ({name} is {kind}): load it in fp16, bf16 or fp32."
            )
    _check_sampling(model.get_model_object("model_sampling"))


def file_name(model: ModelPatcher) -> str:
    """Name of the file that a MODEL was loaded from, without its folder; "" if that is not known."""
    made = getattr(model, "cached_patcher_init", None)
    path = made[1][0] if made and len(made) > 1 and made[1] else ""
    return os.path.basename(path) if isinstance(path, str) else ""


def _check_sampling(sampling: Any) -> None:
    """That what the network predicts is epsilon or v, for timesteps that are the numbers of the schedule's sigmas.

    ComfyUI's ``ModelSampling…`` nodes replace it by LCM's, by EDM's, … (comfy/model_sampling.py,
    comfy_extras/nodes_model_advanced.py), most of which inherit from epsilon's.
    """
    kinds = [kind for kind in type(sampling).__mro__ if not issubclass(kind, torch.nn.Module) and kind is not object]
    found = kinds[0] if kinds else type(sampling)
    if found not in (comfy.model_sampling.EPS, comfy.model_sampling.V_PREDICTION):
        raise UnsupportedModelError(
            f"{SUPPORTED}, but this MODEL's prediction type is {found.__name__}: wire one that predicts epsilon or v"
            " into the node that learns, and put nodes that change its sampling behind it."
        )
    sigmas = sampling.sigmas
    if int(sampling.timestep(sigmas[-1])) != len(sigmas) - 1:
        raise UnsupportedModelError(
            f"{SUPPORTED}, but this MODEL's noise schedule has {len(sigmas)} sigmas whose numbers are not its timesteps:"
            " put nodes that change its sampling behind the node that learns."
        )


class _Canonical(Mapping[str, Tensor]):
    """Weights under their canonical names."""

    def __init__(self, weights: Mapping[str, Tensor], native: Mapping[str, str]) -> None:
        self._weights, self._native = weights, native

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[self._native[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._native)

    def __len__(self) -> int:
        return len(self._native)


def block_outputs(
    network: UNetModel, z: Tensor, t: Tensor, context: Tensor, transformer_options: dict[str, object]
) -> Iterator[Tensor]:
    """Outputs of conv_in, of every down block and of the middle block, ``(B, C, h, w)`` each; arguments as below."""
    embedding = network.time_embed(timestep_embedding(t, network.model_channels).to(z.dtype))
    for block in (*network.input_blocks, network.middle_block):
        if block is not None:
            z = block(z, embedding, context, transformer_options)
            yield z


def spatial_means(outputs: Iterable[Tensor]) -> Tensor:
    """Features ``(B, width)`` float32 of :func:`block_outputs`."""
    return torch.cat([output.mean(dim=(2, 3)) for output in outputs], dim=1).float()


def spatial_features(
    network: UNetModel, z: Tensor, t: Tensor, context: Tensor, transformer_options: dict[str, object]
) -> Tensor:
    """Spatial means of conv_in's and every down block's output and of the mid block, ``(B, width)`` float32.

    Args:
        network: ComfyUI's UNet module, with whatever weights it holds now.
        z: model input ``(B, 4, h, w)`` in the network's type: ``sqrt(a_t) z_0 + sqrt(1 - a_t) eps``.
        t: timesteps ``(B,)``.
        context: ``(B, L, D)``.
        transformer_options: attention override only; other packs' patches must not leak in.
    """
    return spatial_means(block_outputs(network, z, t, context, transformer_options))


def pytorch_attention(_stock: object, *args: object, **kwargs: object) -> Tensor:
    """Attention with a backward pass: sage and flash have none."""
    return attention_pytorch(*args, **kwargs)


class ComfyUNet:
    """The core's ``UNet`` over a MODEL. Its module may hold other weights, or none on this device: ours are lent.

    Args:
        model: a supported MODEL (see :func:`check_supported`); unload it first, so that no weight is held twice.
        dtype: the number type to compute in, see ``compute_type``. In bfloat16 and float16, norms add up in float32, as
            PyTorch's kernels do.
    """

    def __init__(self, model: ModelPatcher, dtype: torch.dtype = torch.float32) -> None:
        check_supported(model)
        self._network: UNetModel = model.model.diffusion_model
        sampling = model.get_model_object("model_sampling")
        self._prediction: Prediction = "v" if isinstance(sampling, comfy.model_sampling.V_PREDICTION) else "epsilon"
        self._schedule = NoiseSchedule((1.0 / (1.0 + sampling.sigmas.detach().double() ** 2)).float().cpu().clone())
        self._device, self._dtype = torch.device(model.load_device), dtype
        self._effective = EffectiveWeights(model, PREFIX)
        self._native = {canonical: name for name, canonical in canonical_names(self._effective).items()}
        self._held: dict[str, Tensor] = {}
        self._lent = False
        layers = {name: self._native[f"{name}.to_k.weight"] for name in cross_attentions(self._native)}
        self._hooks = ContextHooks(
            self._network, {name: native.removesuffix(".to_k.weight") for name, native in layers.items()}
        )

    @property
    def family(self) -> str:
        """ "sd1" or "sd2"."""
        return FAMILIES[self.context_width]

    @property
    def context_width(self) -> int:
        """D, the width of a context (SD 1.x: 768)."""
        return next(self._shape(name)[1] for name in self._native if name.endswith("attn2.to_k.weight"))

    @property
    def width(self) -> int:
        """Channels of the first block (SD 1.x and 2.x: 320)."""
        return int(self._network.model_channels)

    @property
    def numbers(self) -> int:
        """How many numbers its weights are (SD 1.5: 859,520,964)."""
        return sum(self._shape(name).numel() for name in self._native)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """The number type that it computes in."""
        return self._dtype

    @property
    def prediction(self) -> Prediction:
        """What the network predicts."""
        return self._prediction

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule."""
        return self._schedule

    @property
    def feature_width(self) -> int:
        """Width of :meth:`features`, read off the blocks."""
        blocks = [block for block in (*self._network.input_blocks, self._network.middle_block) if block is not None]
        return sum(int(getattr(block[-1], "out_channels", 0) or block[-1].in_channels) for block in blocks)

    def parameters(self) -> Mapping[str, Tensor]:
        """The effective base weights by canonical name, see :class:`EffectiveWeights`: ask for each once."""
        return _Canonical(self._effective, self._native)

    def attention_projections(self) -> dict[str, tuple[int, int]]:
        """Canonical names of all ``attn{1,2}.to_{q,k,v}.weight`` with their shapes (M out, N in)."""
        ends = tuple(f"attn{number}.to_{part}.weight" for number in (1, 2) for part in "qkv")
        return {name: (self._shape(name)[0], self._shape(name)[1]) for name in self._native if name.endswith(ends)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights by canonical name."""
        return {name: tuple(self._shape(name)) for name in self._native}

    def _shape(self, name: str) -> torch.Size:
        return self._effective.shape(self._native[name])

    def using(self, weights: Mapping[str, Tensor], checkpointing: bool = False) -> AbstractContextManager[object]:
        """Lend weights to the network, differentiably; see the core's protocol.

        Raises:
            KeyError: a name that the network has not.
        """
        unknown = sorted(weights.keys() - self._native.keys())
        if unknown:
            raise KeyError(f"The UNet has no parameter {unknown[0]!r}.")
        return self._lend(weights, checkpointing)

    @contextmanager
    def _lend(self, weights: Mapping[str, Tensor], checkpointing: bool) -> Iterator[None]:
        tensors = {
            native: self._own(name) if name not in weights else weights[name].to(self._device, self._dtype)
            for name, native in self._native.items()
        }
        before, self._lent = self._lent, True
        try:
            # functional_call would take the weights back before the backward pass, which breaks checkpointing.
            with (
                _reparametrize_module(self._network, tensors),
                _checkpointed(self._network, checkpointing),
                self._hooks.placed(),
            ):
                yield
        finally:
            self._lent = before

    def _own(self, name: str) -> Tensor:
        """One of the base's own weights, in the number type; kept, because it is lent at every pass."""
        if name not in self._held:
            self._held[name] = self._effective[self._native[name]].to(self._dtype)
        return self._held[name]

    def denoise(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        """The network's prediction ``(B, 4, h, w)``, float32."""
        if not self._lent:
            with self.using({}):
                return self.denoise(z, t, context)
        options = {"optimized_attention_override": pytorch_attention}
        z, t, read = self._inputs(z, t, context)
        with self._unrounded():
            return self._network(z, t, context=self._hooks.plain(read), transformer_options=options).float()

    def features(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Spatial means of the down half and the middle, ``(B, feature_width)`` float32."""
        if not self._lent:
            with self.using({}):
                return self.features(z, t, context)
        options: dict[str, object] = {"optimized_attention_override": pytorch_attention}
        z, t, read = self._inputs(z, t, context)
        with self._unrounded():
            return spatial_features(self._network, z, t, self._hooks.plain(read), options)

    def _inputs(self, z: Tensor, t: Tensor, context: Context) -> tuple[Tensor, Tensor, Context]:
        read = changed(context, lambda one: one.to(self._device, self._dtype))
        return z.to(self._device, self._dtype), t.to(self._device).float(), read

    def _unrounded(self) -> AbstractContextManager[object]:
        """Where the network has another number type than float32, autocast has nothing left to do but widen its norms."""
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, enabled=False)


@contextmanager
def _checkpointed(network: UNetModel, on: bool) -> Iterator[None]:
    """Within it, the network's residual blocks and transformers keep their inputs only, for the backward pass."""
    blocks = [part for part in network.modules() if isinstance(part, ResBlock | SpatialTransformer)] if on else []
    # Another pack may have set a forward of its own on a block; ours goes around it.
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            block.__dict__.pop("forward", None)
            if own is not None:
                block.forward = own
