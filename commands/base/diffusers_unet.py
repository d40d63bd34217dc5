"""diffusers' UNet as the core's UNet. Its parameter names ARE the canonical ones, so nothing is renamed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn.utils.stateless import _reparametrize_module

from e4t_core.layer_contexts import Context, ContextHooks, changed, cross_attentions
from e4t_core.noise_schedule import NoiseSchedule, Prediction

PROJECTIONS = tuple(f"attn{number}.to_{part}.weight" for number in (1, 2) for part in "qkv")


class DiffusersUNet:
    """The core's ``UNet`` over a frozen :class:`UNet2DConditionModel` of Stable Diffusion 1.x or 2.x.

    Args:
        network: its parameters are frozen here; it computes in the type of its first layer and where they are.
        schedule: the noise schedule it was trained with.
        prediction: what it predicts, "epsilon" or "v".
        gradient_checkpointing: compute each block a second time in the backward pass instead of keeping its
            activations (time for memory). :meth:`using` must then be held open over the backward pass, as always.
    """

    def __init__(
        self,
        network: UNet2DConditionModel,
        schedule: NoiseSchedule,
        prediction: Prediction,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self._schedule, self._prediction = schedule, prediction
        layers = cross_attentions(name for name, _ in network.named_parameters())
        self._hooks = ContextHooks(network, {name: name for name in layers})
        if gradient_checkpointing:
            network.enable_gradient_checkpointing()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.network.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The number type that weights are lent in: float32, because those that get offsets are wider than the network."""
        return torch.float32

    @property
    def prediction(self) -> Prediction:
        """What the network predicts."""
        return self._prediction

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule."""
        return self._schedule

    @property
    def context_width(self) -> int:
        """D, the width of a context (SD 1.x: 768)."""
        return int(self.network.config.cross_attention_dim)

    @property
    def feature_width(self) -> int:
        """Width of :meth:`features`, read off the blocks."""
        width = self.network.conv_in.out_channels
        for block in self.network.down_blocks:
            outputs = len(block.resnets) + len(block.downsamplers or ())
            width += outputs * block.resnets[-1].out_channels
        return int(width + self.network.mid_block.resnets[-1].out_channels)

    def parameters(self) -> dict[str, Tensor]:
        """The base's weights by canonical name; detached, read only, in the network's own types."""
        return {name: parameter.detach() for name, parameter in self.network.named_parameters()}

    def attention_projections(self) -> dict[str, tuple[int, int]]:
        """Canonical names of all ``attn{1,2}.to_{q,k,v}.weight`` with their shapes (M out, N in)."""
        return {
            name: (weight.shape[0], weight.shape[1])
            for name, weight in self.network.named_parameters()
            if name.endswith(PROJECTIONS)
        }

    def using(self, weights: Mapping[str, Tensor], checkpointing: bool = False) -> AbstractContextManager[object]:
        """Lend weights to the network, differentiably; see the core's protocol.

        Checkpointing is chosen when it is made: diffusers' networks switch it for good.

        Raises:
            KeyError: a name that the network has not.
        """
        known = dict(self.network.named_parameters())
        unknown = sorted(weights.keys() - known.keys())
        if unknown:
            raise KeyError(f"The UNet has no parameter {unknown[0]!r}.")
        return self._lent({name: weight.to(known[name].device, known[name].dtype) for name, weight in weights.items()})

    @contextmanager
    def _lent(self, weights: dict[str, Tensor]) -> Iterator[None]:
        # functional_call would take the weights back before the backward pass, which breaks checkpointing.
        with _reparametrize_module(self.network, weights), self._hooks.placed():
            yield

    def denoise(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        """The network's prediction ``(B, 4, h, w)``, float32."""
        z, t, read = self._inputs(z, t, context)
        with self._computing():
            plain = self._hooks.plain(read)
            return self.network(z, t, encoder_hidden_states=plain, return_dict=False)[0].float()

    def features(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Spatial means of conv_in's, every down block's output and of the mid block: ``(B, feature_width)``, float32.

        The up half, more than half of the cost of a pass, is not computed.
        """
        z, t, read = self._inputs(z, t, context)
        with self._computing():
            return self._means(z, t, self._hooks.plain(read))

    def _means(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        network = self.network
        time = network.time_embedding(network.get_time_embed(sample=z, timestep=t))
        sample = network.conv_in(z)
        outputs = [sample]
        for block in network.down_blocks:
            if getattr(block, "has_cross_attention", False):
                sample, found = block(hidden_states=sample, temb=time, encoder_hidden_states=context)
            else:
                sample, found = block(hidden_states=sample, temb=time)
            outputs.extend(found)
        outputs.append(network.mid_block(sample, time, encoder_hidden_states=context))
        return torch.cat([output.mean(dim=(2, 3)) for output in outputs], dim=1).float()

    def _computing(self) -> AbstractContextManager[object]:
        """Autocast to the network's type, because the weights that get offsets are wider than it."""
        weight = self.network.conv_in.weight
        if weight.dtype == torch.float32 or weight.is_meta:
            return nullcontext()
        return torch.autocast(weight.device.type, weight.dtype, cache_enabled=False)

    def _inputs(self, z: Tensor, t: Tensor, context: Context) -> tuple[Tensor, Tensor, Context]:
        weight = self.network.conv_in.weight
        read = changed(context, lambda one: one.to(weight.device, weight.dtype))
        return z.to(weight.device, weight.dtype), t.to(weight.device), read


def narrowed(
    network: UNet2DConditionModel, dtype: torch.dtype, but: tuple[str, ...] = PROJECTIONS
) -> UNet2DConditionModel:
    """A float32 network in another type, in place, but for the weights whose names end so: those that get offsets.

    ``W0 * (1 + Δ)`` is rounded to the type that is computed in. Were ``W0`` itself of that type, the product would fall back
    on it wherever Δ is below half a step (0.2 % in bfloat16), and training would not see what its first offsets do. The
    digits that ``W0`` has beyond make the rounding go either way, and so right on average.
    """
    for name, parameter in network.named_parameters():
        if not name.endswith(but):
            parameter.data = parameter.data.to(dtype)
    return network
