"""``python -m benchmarks.full_size``: E4T at Stable Diffusion 1.5's size, with random weights, through ComfyUI's UNet.

One tuning step of encoder and offsets, then one refined evaluation, at a tiny latent. It checks the numbers of the
paper's Stable Diffusion 1.x form (96 matrices, 143,226,592 offset parameters, features 10880 wide), that all of it runs, and
the peak of this process's memory. It needs about 14 GB of free memory; no file is read or written.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch
from torch import Tensor

from e4t_core.methods.e4t.concept_encoder import ConceptEncoder
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.domain_info import BackboneInfo, DomainInfo
from e4t_core.methods.e4t.method import E4T
from e4t_core.methods.e4t.settings import FACE, TuningSettings
from e4t_core.methods.e4t.weight_offsets import WeightOffsets
from e4t_core.photos import Photos
from e4t_core.run import BaseModel
from e4t_core.templates import NEUTRAL
from e4t_core.training import train
from miniworld.text_encoder import TextEncoder, stock_state

from . import host
from .report import gate

MATRICES, OFFSET_PARAMETERS, FEATURES = 96, 143_226_592, 10_880
PEAK_GB = 16.0
CLIP_LAYERS, CLIP_WIDTH = 16, 1280  # ViT-H/14: every second block
SD15: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
}


def peak_gigabytes() -> float:
    """The largest resident size of this process so far, in GB (1e9 bytes).

    Raises:
        SystemExit: this system does not tell.
    """
    try:
        import resource
    except ImportError as error:
        raise SystemExit("The peak of memory is read by the module 'resource', which Windows has not.") from error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def random_state(seed: int = 0, device: str = "cpu") -> dict[str, Tensor]:
    """A checkpoint of Stable Diffusion 1.5's UNet and text encoder in float16, with random weights drawn on a device."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    generator = torch.Generator(device).manual_seed(seed)
    shapes = UNetModel(**SD15, device="meta", operations=comfy.ops.disable_weight_init).state_dict()
    state = {}
    for name, shape in shapes.items():
        if shape.ndim < 2:
            value = torch.ones(shape.shape) if name.endswith("weight") else torch.zeros(shape.shape)
        else:
            value = torch.randn(shape.shape, generator=generator, device=device) * shape[0].numel() ** -0.5
        state[f"model.diffusion_model.{name}"] = value.half().cpu()
    torch.manual_seed(seed)
    text = stock_state(TextEncoder())
    return state | {f"cond_stage_model.transformer.{name}": value.half() for name, value in text.items()}


def make_domain(unet: Any, device: torch.device | None = None) -> Domain:
    """An untrained face domain of full size, on a device; its backbone's features are drawn, not computed."""
    shapes, width = unet.attention_projections(), unet.context_width
    encoder = ConceptEncoder(CLIP_LAYERS, CLIP_WIDTH, unet.feature_width, width, device=device)
    layers = tuple(range(2, 2 * CLIP_LAYERS + 1, 2))
    info = DomainInfo(
        name="full_size",
        word="face",
        base_family=unet.family,
        prediction=unet.prediction,
        context_width=width,
        feature_width=unet.feature_width,
        projections=shapes,
        backbone=BackboneInfo("comfy", "ViT-H-14", layers, CLIP_WIDTH, 224, pretrained="laion2b_s32b_b79k"),
        scale=0.1,
        templates=NEUTRAL,
        preset=FACE,
        image_size=512,
    )
    return Domain(encoder, WeightOffsets(shapes, device=device), info)


def tune_and_draw(side: int, batch: int) -> bool:
    """The whole check; prints as it goes."""
    import comfy.sample
    import comfy.sd

    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {peak_gigabytes():5.2f} GB  {text}", flush=True)

    model, clip, _, _ = comfy.sd.load_state_dict_guess_config(random_state(), output_vae=False)
    say("loaded by ComfyUI")
    unet = host.pack("nodes.host.networks.base_model").ComfyUNet(model)
    text = host.pack("nodes.host.networks.text_encoder").ComfyTextEncoder(clip)
    domain = make_domain(unet)
    count = sum(parameter.numel() for parameter in domain.offsets.parameters())
    say(
        f"domain: {len(domain.offsets.shapes)} matrices, {count:,} offset parameters, features {unet.feature_width} wide"
    )
    generator = torch.Generator().manual_seed(1)
    photos = Photos(
        torch.randn(1, 4, side, side, generator=generator),
        torch.randn(1, CLIP_LAYERS, CLIP_WIDTH, generator=generator),
    )
    settings = TuningSettings(steps=1, batch=batch, micro_batch=batch, train_unet=False)
    concept = train(E4T(domain), BaseModel(unet, text, "random"), photos, settings, seed=0)
    say(f"tuned one step of encoder and offsets at batch {batch}: loss {concept.losses[0]:.4f}")
    patched = host.pack("nodes.host.sampling.patched_model")
    store = host.pack("nodes.host.learning.result_store").STORE
    with torch.inference_mode(False), torch.no_grad():
        empty = text.empty().detach()
    kind = host.pack("nodes.host.sampling.held_concept").HeldConcept
    added = kind.of(concept, empty, unet.parameters())
    widths = (len(domain.offsets.shapes), count, unet.feature_width)
    del unet, text, domain
    held = patched.with_concept(model, added, store.prompts)
    words = host.pack("nodes.host.prompt.concept_clip").with_concept(
        clip, concept.trigger, concept.fingerprint, concept.embedding, store.prompts
    )
    refined: list[int] = []
    encode_again = type(words).encode_again

    def counted(self: Any, *arguments: Any) -> Any:
        refined.append(1)
        return encode_again(self, *arguments)

    type(words).encode_again = counted
    with torch.inference_mode():
        positive, negative = host.encode(words, [f"a photo of {concept.trigger}"]), host.encode(words, [""])
        start = torch.randn(1, 4, side, side, generator=generator)
        latent = comfy.sample.sample(
            held, start, 1, 5.0, "euler", "normal", positive, negative, torch.zeros_like(start), disable_pbar=True
        )
    say(f"{len(refined)} refined evaluation: {'finite' if torch.isfinite(latent).all() else 'NOT FINITE'}")
    print()
    peak = peak_gigabytes()
    met = [
        gate("attention matrices", float(widths[0] == MATRICES), least=1, detail=f"{widths[0]}"),
        gate("offset parameters", float(widths[1] == OFFSET_PARAMETERS), least=1, detail=f"{widths[1]:,}"),
        gate("feature width", float(widths[2] == FEATURES), least=1, detail=f"{widths[2]}"),
        gate("refined evaluations", len(refined), least=1),
        gate("finite results", float(torch.isfinite(latent).all()), least=1),
        gate("peak of memory in GB", peak, most=PEAK_GB),
    ]
    return all(met)


def main() -> int:
    """The command; its exit status is 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8, help="side of the latent")
    parser.add_argument("--batch", type=int, default=1, help="noise levels in the one tuning step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    host.import_comfyui()
    return 0 if tune_and_draw(options.side, options.batch) else 1


if __name__ == "__main__":
    raise SystemExit(main())
