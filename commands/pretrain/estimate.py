"""How much memory and time a run will take, from counted parameters and operations.

What is counted and what is assumed: parameters are exact (read from the files' headers). Operations are those of
``counts``. Activations assume that no attention matrix is kept (flash attention), and that each layer keeps its output
and what the next norm or nonlinearity makes of it. Nothing is added for the allocator's gaps or the CUDA context (about
1 GB), so leave room.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from commands.base.model_files import BackboneCounts, BaseCounts
from commands.pretrain.config.sections import Config
from e4t_core.methods.e4t.concept_encoder import ConceptEncoder
from e4t_core.methods.e4t.offset_forms import make_offsets
from e4t_core.methods.e4t.weight_offsets import HYPERNETWORK

REACHED = 0.5
"""Share of a large matrix product's speed that training is taken to reach."""


@dataclass(frozen=True)
class Estimate:
    """Attributes:
    encoder, offsets: numbers of trained parameters.
    memory: what holds it -> bytes, per process.
    checkpoint: bytes of one checkpoint.
    cached_row: bytes of one picture's latent, features and mask in the cache of features.
    operations: what does it -> floating-point operations per sample.
    samples: of the whole run.
    """

    encoder: int
    offsets: int
    memory: dict[str, int]
    checkpoint: int
    cached_row: int
    operations: dict[str, int]
    samples: int

    def seconds(self, speed: float, processes: int = 1) -> float:
        """Of the whole run, at ``speed`` operations per second and process."""
        return self.samples * sum(self.operations.values()) / (speed * processes)


def estimate(config: Config, base: BaseCounts, backbone: BackboneCounts) -> Estimate:
    """Memory and operations of a run.

    Per sample: a pass forward, one backward (the base's weights get no gradients) and, with gradient checkpointing,
    another forward, for the whole UNet and for the feature pass; the attention matrices' gradients besides; the
    text encoder forward and backward; autoencoder and backbone forward, unless their results are cached.
    """
    training, unet = config.training, base.unet
    encoder = _size(
        ConceptEncoder(backbone.layers, backbone.width, unet.feature_width, unet.context_width, device="meta")
    )
    v_size = backbone.width if training.offset_form == HYPERNETWORK else config.domain.v_size
    offsets = _size(make_offsets(training.offset_form, unet.projections, v_size, device="meta"))
    trained = encoder * training.train_encoder + offsets * training.train_offsets
    held = 4 if training.precision == "fp32" else 2
    frozen = unet.parameters + base.text_parameters + base.vae_parameters + backbone.parameters
    matrices = sum(rows * columns for rows, columns in unet.projections.values())
    through_features = not training.stop_feature_gradient
    activations = unet.checkpointed if training.gradient_checkpointing else unet.activations
    share = unet.features / unet.forward if through_features else 0.0
    passes = 3 if training.gradient_checkpointing else 2
    features = unet.features * (passes if through_features else 1)
    seen_once = 0 if config.data.cache_features else 1
    return Estimate(
        encoder=encoder,
        offsets=offsets,
        memory={
            "frozen networks": frozen * held + matrices * (4 - held),
            "trained weights, gradients, AdamW": trained * 16 + (encoder + offsets - trained) * 4,
            "averaged weights": trained * 4 if training.ema else 0,
            "attention matrices with offsets, their gradients": matrices * (4 + 4 + held) * training.train_offsets,
            "activations": int(activations * (1 + share) * held * training.micro_batch),
        },
        checkpoint=trained * (16 if training.ema else 12),
        cached_row=2
        * ((4 + training.use_mask) * (config.domain.image_size // 8) ** 2 + backbone.layers * backbone.width),
        operations={
            "UNet": passes * unet.forward + unet.projection_gradients * training.train_offsets,
            "feature pass": features,
            "text encoder": 2 * base.text_forward,
            "autoencoder": base.vae_encode * seen_once,
            "image backbone": backbone.forward * seen_once,
        },
        samples=training.steps * training.batch,
    )


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
