"""Pictures that both loaders of an image backbone are shown: noise, nobody's photo."""

from __future__ import annotations

import torch
from torch import Tensor

from e4t_core.methods.e4t.domain_info import BackboneInfo


def pictures_for(info: BackboneInfo) -> Tensor:
    """``(2, 3, S, S)`` in [0, 1], of the backbone's size."""
    generator = torch.Generator().manual_seed(2)
    return torch.rand(2, 3, info.image_size, info.image_size, generator=generator)
