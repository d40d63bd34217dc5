"""How much memory and time a run will take: its own loss is run on outlines of its networks, and counted.

Parameters and operations are exact. Memory is the largest that a micro-batch holds at once, forward and backward, in the
order in which the run makes and drops its tensors. Not counted are what autocast keeps in float32 (norms), the
allocator's gaps and the CUDA context (about 1 GB), so leave room.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from commands.base.cost import count_operations, count_peak
from commands.base.networks import Base
from e4t_core.methods.e4t.clip_backbone import ClipBackbone

from .config.sections import Config
from .run.encoder_and_offsets import EncoderAndOffsets
from .run.inputs import Inputs

META = torch.device("meta")
BACKWARD = "backward passes; encoder and offsets"
REACHED = 0.5
"""Share of a large matrix product's speed that training is taken to reach."""


@dataclass(frozen=True)
class Estimate:
    """Attributes:
    networks: name -> number of parameters, the frozen ones first, then encoder and offsets.
    memory: what holds it -> bytes, per process.
    checkpoint: bytes of one checkpoint.
    cached_row: bytes of one picture's latent, features and mask in the cache of features.
    operations: what does it -> floating-point operations per sample.
    samples: of the whole run.
    """

    networks: dict[str, int]
    memory: dict[str, int]
    checkpoint: int
    cached_row: int
    operations: dict[str, int]
    samples: int

    def seconds(self, speed: float, processes: int = 1) -> float:
        """Of the whole run, at ``speed`` operations per second and process."""
        return self.samples * sum(self.operations.values()) / (speed * processes)


def estimate(config: Config, base: Base, backbone: ClipBackbone) -> Estimate:
    """Memory and operations of a run.

    Args:
        config: of the run.
        base, backbone: on the meta device, in the run's precision, the base with the run's gradient checkpointing.

    Raises:
        WordError: the domain word is not one token of the base's text encoder.
    """
    training, domain = config.training, config.domain
    networks = EncoderAndOffsets(config, base, backbone.info.vectors, backbone.info.width, META)
    counted = {
        "UNet": sum(weight.numel() for weight in base.unet.parameters().values()),
        "text encoder": _size(base.text.network),
        "autoencoder": _size(base.vae.network),
        "image backbone": _size(backbone.tower),
    }
    frozen = sum(counted.values())
    counted |= {"encoder": _size(networks.encoder), "offsets": _size(networks.offsets)}
    trained = sum(weight.numel() for weight in networks.parameters() if weight.requires_grad)
    held = 4 if training.precision == "fp32" else 2
    matrices = sum(rows * columns for rows, columns in base.unet.attention_projections().values())
    latent = domain.image_size // 8
    inputs = _inputs(config, backbone)
    return Estimate(
        networks=counted,
        memory={
            "frozen networks": frozen * held + matrices * (4 - held),
            "encoder and offsets, AdamW's moments": trained * 12 + (_size(networks) - trained) * 4,
            "averaged weights": trained * 4 if training.ema else 0,
            "a micro-batch: activations, weights with offsets, gradients": count_peak(lambda: _pass(networks, inputs)),
        },
        checkpoint=trained * (16 if training.ema else 12),
        cached_row=2 * ((4 + training.use_mask) * latent**2 + backbone.info.vectors * backbone.info.width),
        operations=_operations(networks, inputs, config, base, backbone),
        samples=training.steps * training.batch,
    )


def _operations(
    networks: EncoderAndOffsets, inputs: Inputs, config: Config, base: Base, backbone: ClipBackbone
) -> dict[str, int]:
    """Per sample; what all samples of a micro-batch share is shared out."""
    size = len(inputs.indices)
    images = torch.empty(1, 3, config.domain.image_size, config.domain.image_size, device=META)
    z, t = inputs.latents[:1], torch.zeros(1, dtype=torch.long, device=META)
    word = torch.empty(1, base.text.width, device=META)
    with torch.no_grad():
        forward = {
            "UNet": count_operations(lambda: base.unet.denoise(z, t, networks.empty)),
            "feature pass": count_operations(lambda: base.unet.features(z, t, networks.empty)),
            "text encoder": count_operations(lambda: base.text.encode(["{}"], word)),
        }
    whole = count_operations(lambda: _pass(networks, inputs)) // size
    cached = config.data.cache_features
    return forward | {
        BACKWARD: whole - sum(forward.values()),
        "autoencoder": 0 if cached else count_operations(lambda: base.vae.encode(images)),
        "image backbone": 0 if cached else count_operations(lambda: backbone.cls_features(images)),
    }


def _inputs(config: Config, backbone: ClipBackbone) -> Inputs:
    size, latent = config.training.micro_batch, config.domain.image_size // 8
    return Inputs(
        torch.empty(size, 4, latent, latent, device=META),
        torch.empty(size, backbone.info.vectors, backbone.info.width, device=META),
        None,
        tuple(range(size)),
    )


def _pass(networks: EncoderAndOffsets, inputs: Inputs) -> None:
    with networks.lending():
        diffusion, offset = networks(inputs)
        (diffusion.mean() + offset.mean()).backward()
    networks.zero_grad(set_to_none=True)


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def measured_speed(precision: str, seconds: float = 0.5) -> tuple[float, str]:
    """Operations per second that training may reach here, and what that is based on: a matrix product, measured now."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    side = 4096 if device.type == "cuda" else 512
    a = torch.ones(side, side, device=device, dtype=dtype if device.type == "cuda" else torch.float32)

    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    run(2)
    once = run(4) / 4
    count = max(4, int(seconds / once))
    peak = 2 * side**3 * count / run(count)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"this CPU, {torch.get_num_threads()} threads"
    return (
        REACHED * peak,
        f"{REACHED:.0%} of {peak / 1e12:.3g} TFLOP/s, which a product of {side}×{side} matrices reaches on {name}",
    )
