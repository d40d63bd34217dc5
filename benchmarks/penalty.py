"""``python -m benchmarks.penalty``: how large the penalty on the word is when tuning begins, beside the rest of the loss.

The shipped face domain, and those of the ablations that are pre-trained with and without lambda, if they are in runs/ablations: how far
their words are from the domain's word, and lambda times the squared offset as a share of the diffusion loss, for some lambdas. The
first validation individuals, 8 noise levels each, all of the photo.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from commands.base.diffusers_base import DiffusersBase, load_base
from e4t_core.diffusion import draw_samples
from e4t_core.files.domain_file import load_domain
from e4t_core.methods.e4t.clip_backbone import ClipBackbone
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.word_model import WordModel
from miniworld.domains import load_mini_domain

from . import host
from .ablation_arms import ARMS, SHORT, UNHELD_ARM
from .ablation_domains import domain_file
from .arms import load_subjects
from .report import table

LAMBDAS = (0.1, 0.01, 0.001, 1e-4)
LEVELS = 8
SEED = 0


@torch.no_grad()
def parts(base: DiffusersBase, domain: Domain, photos: Sequence[Tensor]) -> tuple[float, float, float]:
    """Means over photos ``(3, H, W)`` and noise levels of the untuned domain: the diffusion loss, the squared length of the word's
    offset, and how far the word is from the domain's, in lengths of that."""
    assert domain.backbone_state is not None
    info, backbone = domain.info, ClipBackbone(domain.info.backbone, domain.backbone_state)
    offsets, weights = domain.offsets.fixed(), base.unet.parameters()
    found = []
    with base.unet.using({name: offsets.apply(name, weights[name].float()) for name in domain.offsets.names}):
        words = WordModel.of(base.unet, base.text, domain.encoder, info.word, info.scale, info.templates)
        for photo in photos:
            latents, features = base.vae.encode(photo[None]), backbone.cls_features(photo[None])
            sample = draw_samples(SEED, range(LEVELS), latent_shape=latents.shape[1:], batch=LEVELS, stream="penalty")
            loss = words.losses(
                latents.expand(LEVELS, -1, -1, -1), features.expand(LEVELS, *(-1,) * (features.ndim - 1)), sample
            )
            found.append((loss.diffusion.mean(), loss.offset.mean()))
    diffusion, offset = (float(torch.stack(values).mean()) for values in zip(*found, strict=True))
    return diffusion, offset, info.scale * offset**0.5 / float(words.domain_word_embedding.norm())


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=4)
    options = parser.parse_args()
    photos = [person.photo for person in load_subjects("validation", options.identities, "face")]
    base = load_base(Path(host.mini_checkpoint()), device=torch.device("cpu"))
    domains = {"shipped": load_mini_domain()}
    for name in (SHORT, UNHELD_ARM):
        file = domain_file(ARMS[name])
        if file.exists():
            domains[name] = load_domain(file)
        else:
            print(f"{name!r} is not pre-trained: python -m benchmarks.ablations --arms {name!r} does it")
    rows = []
    for name, domain in domains.items():
        diffusion, offset, away = parts(base, domain, photos)
        shares = (f"{weight * offset / diffusion:.3g}" for weight in LAMBDAS)
        rows.append((name, f"{diffusion:.4f}", f"{offset:.1f}", f"{away:.2f}", *shares))
    header = (
        "domain",
        "diffusion loss",
        "|E|^2",
        "word's distance",
        *(f"share, lambda {weight:g}" for weight in LAMBDAS),
    )
    print(table(header, rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
