"""A domain file for the workflow ``hypernetwork``: the mini world's faces with random weights that depend on the photo.

It opens and learns as a trained one does, but knows nothing of faces.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from e4t_core.files.domain_file import save_domain
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.offset_forms import make_offsets
from e4t_core.methods.e4t.weight_offsets import HYPERNETWORK
from miniworld.domains import load_mini_domain


def write_hypernetwork(path: Path) -> None:
    """The file, from a fixed seed."""
    faces = load_mini_domain()
    info = dataclasses.replace(faces.info, offset_form=HYPERNETWORK, v_size=faces.info.backbone.width)
    generator = torch.Generator().manual_seed(1)
    offsets = make_offsets(HYPERNETWORK, info.projections, info.v_size, generator=generator)
    with torch.no_grad():
        for module in offsets.modules():
            if hasattr(module, "row"):
                # Its offsets begin at nothing; so small they are no harm and differ from photo to photo.
                weight = module.row.weight
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator) / weight.shape[1])
    save_domain(path, Domain(faces.encoder, offsets, info, faces.backbone_state), torch.float16)
