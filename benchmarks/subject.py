"""``python -m benchmarks.subject``: without a mask, does a domain find the subject of a photo?

For each individual's concept photo, what the domain finds (``e4t_core/subject.py``) is compared with what the renderer
knows, in the cells of the latent: how much of the subject is found (recall), how much of what is found is subject
(precision), and how much of what the subject wears is taken for it. The rest of what is wrongly found is background. Intervals
are 95 %, from 10,000 bootstrap resamples of identities. A sheet shows the first ones: photo, found, exact.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from commands.progress import Progress
from e4t_core.files.domain_file import load_domain
from e4t_core.methods.e4t.method import E4T
from e4t_core.photos import Photos
from e4t_core.run import BaseModel
from miniworld.concept_photos import subject_masks
from miniworld.renderer import render

from . import host
from .arms import WEIGHTS, Subject, load_subjects
from .options import sheet_options
from .report import table
from .statistics import bootstrap, weighted_ratio

SHOWN = 12


class Finder:
    """The mini world's base and a domain, in ComfyUI, as E4T Personalize uses them."""

    def __init__(self, domain: str) -> None:
        self.base = host.load_base(host.mini_checkpoint())
        self.domain = load_domain(host.mini_domain(WEIGHTS[domain]))
        self.unet = host.pack("nodes.host.networks.base_model").ComfyUNet(self.base.model)
        self.text = host.pack("nodes.host.networks.text_encoder").ComfyTextEncoder(self.base.clip)

    def find(self, photo: Tensor) -> Tensor:
        """The subject ``(1, 1, h, w)`` in {0, 1} of a photo ``(3, H, W)``."""
        images = photo.movedim(0, -1)[None]
        with torch.inference_mode():
            latent = self.base.model.model.process_latent_in(self.base.vae.encode(images)).float().cpu()
            features = host.pack("nodes.host.networks.backbone").image_features(self.domain, None, images)
        with (
            torch.inference_mode(False),
            host.pack("nodes.host.networks.compute_type").bfloat16_products(self.unet.device),
        ):
            photos = Photos(latent.clone(), features.clone())
            settings = replace(self.domain.info.preset, find_subject=True, use_mask=True)
            run = E4T(self.domain).start(BaseModel(self.unet, self.text, "known"), photos, settings, 0, "")
            run.prepare(lambda: None)
        assert run.photos.masks is not None
        return run.photos.masks.cpu()


def worn(person: Subject) -> Tensor:
    """Where the accessory is ``(1, 1, 128, 128)`` in {0, 1}."""
    bare = render([person.identity], [replace(person.scene, accessory=0)])
    return ((person.photo[None] - bare).abs().amax(1, keepdim=True) > 0.02).float()


def main() -> None:
    options = sheet_options(__doc__, Path("runs/subject.png"))
    finder, sums = Finder(options.domain), []
    shown: list[list[Tensor]] = []
    for person in Progress(load_subjects(options.split, options.identities, options.domain), desc="photos"):
        found = finder.find(person.photo)
        exact = subject_masks([person.identity], [person.scene], person.photo[None])
        subject, accessory = (
            F.interpolate(part, size=found.shape[-2:], mode="bilinear", antialias=True)
            for part in (exact, worn(person))
        )
        sums.append([
            float(part.sum()) for part in (found * subject, subject, found, found * accessory, accessory, found * 0 + 1)
        ])  # fmt: skip
        if len(shown) < SHOWN:
            masks = (F.interpolate(mask, size=person.photo.shape[-2:], mode="bilinear") for mask in (found, subject))
            gray = 0.35 * person.photo.mean(0, keepdim=True)
            shown.append([person.photo, *(gray + mask[0] * (person.photo - gray) for mask in masks)])
    right, subject, found, with_worn, accessory, cells = np.array(sums).T
    rows = [
        (name, str(bootstrap(lambda w, a=a, b=b: weighted_ratio(w, a, b), len(sums))))  # type: ignore[misc]
        for name, a, b in (
            ("of the subject, found (recall)", right, subject),
            ("of what is found, subject (precision)", right, found),
            ("of what is worn, taken for the subject", with_worn, accessory),
            ("of the photo, found", found, cells),
        )
    ]
    print(table((f"{len(sums)} {options.split} {options.domain}s", "share"), rows))
    sheet = make_grid(torch.stack([row[part] for part in range(3) for row in shown]), nrow=len(shown), pad_value=1.0)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet * 255).round().byte().movedim(0, -1).numpy()).save(options.out)
    print(f"{options.out}: photos, what is found of them, and their exact subjects")


if __name__ == "__main__":
    main()
