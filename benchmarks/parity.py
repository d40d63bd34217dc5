"""``python -m benchmarks.parity``: diffusers' and ComfyUI's networks are one base model to E4T, at the true shapes.

For Stable Diffusion 1.5 (context 768, predicts epsilon) and 2.1 (context 1024, predicts v, CLIP-H) a checkpoint with
random weights is written and read twice: by ComfyUI's own loader, and by the pre-training command's. Both must give
the same noise prediction, UNet features, prompt contexts, latents and training loss. The domain that weighs in on them
is made on one side (1.5: diffusers, 2.1: ComfyUI), saved, and loaded on the other as it is. Likewise the [CLS] vectors
of a random ViT-H/14, from one file, by open_clip and by "Load CLIP Vision".

It needs about 10 GB of memory and 4 GB of temporary disk space.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from commands.check.measured import Side, difference, measure, odd_facts
from commands.inside.comfy_side import comfy_side, forget, stock_vectors
from e4t_core.files.domain_file import load_domain, save_domain
from e4t_core.methods.e4t.clip_backbone import ClipBackbone, read_backbone_weights
from e4t_core.methods.e4t.concept_encoder import ConceptEncoder
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.domain_info import BackboneInfo, DomainInfo
from e4t_core.methods.e4t.settings import FACE
from e4t_core.methods.e4t.weight_offsets import WeightOffsets
from e4t_core.templates import NEUTRAL

from . import host
from .full_size import peak_gigabytes
from .random_checkpoint import FAMILIES, Family, vision_state, write_checkpoint
from .report import gate, table

TOLERANCE = 1e-4
VIT_H = tuple(range(2, 33, 2))


def make_domain(unet: Any, text: Any, seed: int = 3) -> Any:
    """A domain as if trained: its offsets (up to a few per cent) and its encoder do something."""
    generator = torch.Generator().manual_seed(seed)
    shapes = unet.attention_projections()
    offsets = WeightOffsets(shapes, generator=generator)
    with torch.no_grad():
        for name, parameter in offsets.named_parameters():
            if "row" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    backbone = BackboneInfo("comfy", "ViT-H-14", VIT_H, 1280, 224, pretrained="laion2b_s32b_b79k")
    about = DomainInfo(
        name="parity",
        word="face",
        base_family="sd1" if text.width == 768 else "sd2",
        prediction=unet.prediction,
        context_width=text.width,
        feature_width=unet.feature_width,
        projections=shapes,
        backbone=backbone,
        scale=0.1,
        templates=NEUTRAL,
        preset=FACE,
        image_size=512,
    )
    encoder = ConceptEncoder(len(VIT_H), 1280, unet.feature_width, text.width, generator=generator)
    return Domain(encoder, offsets, about, None)


def diffusers_side(checkpoint: Path, domain_file: Path) -> Side:
    """The pre-training command's loader; makes the domain if its file is not there."""

    from commands.base.diffusers_base import load_base

    base = load_base(checkpoint)
    domain = _domain(domain_file, base.unet, base.text)
    return measure(base.unet, base.text, base.encode, domain)


def _domain(file: Path, unet: Any, text: Any) -> Any:
    if not file.exists():
        save_domain(file, make_domain(unet, text), torch.float16)
        gc.collect()
    return load_domain(file)


def compare(family: Family, folder: Path) -> tuple[list[tuple[str, float]], list[str], tuple[Side, Side]]:
    """Largest differences by name, the facts that differ, and both sides (diffusers', ComfyUI's)."""
    checkpoint, domain_file = folder / "base.safetensors", folder / "domain.safetensors"
    write_checkpoint(checkpoint, family)
    sides = {}
    for name in sorted(("diffusers", "ComfyUI"), key=lambda name: name != family.domain_made_by):
        if name == "diffusers":
            sides[name] = diffusers_side(checkpoint, domain_file)
        else:
            sides[name] = comfy_side(checkpoint, partial(_domain, domain_file), torch.float16, family.loader)
            forget()
        gc.collect()
    ours, stock = sides["diffusers"], sides["ComfyUI"]
    differences = [(name, difference(value, stock.values[name])) for name, value in ours.values.items()]
    return differences, odd_facts(ours, stock), (ours, stock)


def vision_features(file: Path, pictures: Tensor) -> dict[str, Tensor]:
    """[CLS] vectors ``(n, 16, 1280)`` of pictures ``(n, S, S, 3)`` in [0, 1], by each of the two loaders."""
    info = BackboneInfo("open_clip", "ViT-H-14", VIT_H, 1280, 224)
    tower = ClipBackbone(info, read_backbone_weights(file))
    found = {"open_clip": tower.cls_features(pictures.movedim(-1, 1))}
    del tower
    gc.collect()
    found["ComfyUI"] = stock_vectors(info, file, pictures.movedim(-1, 1))
    forget()
    gc.collect()
    return found


def vision_parity(folder: Path) -> list[tuple[str, Tensor]]:
    """For both layouts that ViT-H/14's file comes in: its name and the largest difference of each block."""
    import comfy.clip_vision

    pictures = torch.rand(2, 224, 224, 3, generator=torch.Generator().manual_seed(2))
    rows = []
    for layout in ("open_clip", "transformers"):
        state = vision_state("ViT-H-14")
        if layout == "transformers":
            # ComfyUI's own conversion, so that ours is not measured by itself.
            state = comfy.clip_vision.convert_to_transformers(state, "visual.")
        file = folder / f"{layout}.safetensors"
        save_file({name: value.contiguous() for name, value in state.items()}, file)
        del state
        found = vision_features(file, pictures)
        each = (found["open_clip"] - found["ComfyUI"]).abs().amax(dim=(0, 2))
        rows.append((layout, each))
        file.unlink()
    return rows


def show_family(family: Family) -> bool:
    """Compare one family and print its table; true if all of it agrees."""
    with tempfile.TemporaryDirectory() as folder:
        differences, odd, (ours, stock) = compare(family, Path(folder))
    facts = ours.facts
    print(
        f"\n{family.name}: predicts {facts['prediction']}, context {family.context}, features {facts['feature width']},"
        f" {len(facts['parameters'])} parameters, {len(facts['matrices with offsets'])} with offsets; domain made by"
        f" {family.domain_made_by}"
    )
    rows = [
        (
            name,
            "×".join(map(str, ours.values[name].shape)),
            f"{float(stock.values[name].std(correction=0)):.3g}",
            f"{value:.1e}",
        )
        for name, value in differences
    ]
    print(table(("value", "shape", "spread", "largest difference"), rows))
    print(
        f"measured in {ours.seconds:.1f} s (diffusers) and {stock.seconds:.1f} s (ComfyUI); {peak_gigabytes():.2f} GB"
    )
    met = gate("same names, shapes and prediction", float(not odd), least=1, detail=", ".join(odd))
    worst = max(differences, key=lambda row: row[1])
    return gate("largest difference", worst[1], most=TOLERANCE, detail=worst[0]) and met


def show_vision() -> bool:
    """Compare ViT-H/14's loaders and print the table; true if they agree."""
    with tempfile.TemporaryDirectory() as folder:
        rows = vision_parity(Path(folder))
    print("\nViT-H/14: 16 [CLS] vectors of width 1280, open_clip against Load CLIP Vision")
    print(
        table(("layout of the file", "largest difference"), [(name, f"{float(each.max()):.1e}") for name, each in rows])
    )
    print("by block: " + ", ".join(f"{float(value):.0e}" for value in rows[0][1]))
    worst = max(float(each.max()) for _, each in rows)
    return gate("largest difference", worst, most=TOLERANCE, detail=f"{peak_gigabytes():.2f} GB")


CHECKS: dict[str, Callable[[], bool]] = {
    "sd1": lambda: show_family(FAMILIES[0]),
    "sd2": lambda: show_family(FAMILIES[1]),
    "vision": show_vision,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(CHECKS), help="one of the three comparisons")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only is None:
        # One process each, so that the peak of memory is one comparison's.
        command = [sys.executable, "-m", "benchmarks.parity", "--threads", str(options.threads), "--only"]
        codes = [subprocess.run([*command, name], check=False).returncode for name in CHECKS]
        raise SystemExit(max(map(abs, codes)))
    host.import_comfyui()
    if not CHECKS[options.only]():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
